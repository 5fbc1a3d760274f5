"""Which way a metric is better: by the words of its name, by the arguments, or asked for; never guessed."""

import pytest

from rgd_hf import ReweightedTrainer, compare
from rgd_hf.comparison.directions import direction_in, is_greater_better, is_lower_better
from rgd_hf.scripts.tabular.scores import CLASSIFICATION, REGRESSION
from rgd_hf.scripts.training.metrics import FUNCTIONS, metric_names
from rgd_hf.scripts.training.results import main_metric
from rgd_hf.scripts.vision.metrics import image_metric_names
from tests.helpers.tiny import classification_data, tiny_bert

FALLING = [
    "loss",
    "log_loss",
    "nll",
    "nll_loss",
    "hamming_loss",
    "loss_rare",
    "a_loss",
    "trainLoss",
    "huberloss",
    "mse",
    "rmse",
    "mae",
    "MAPE",
    "smape",
    "rmsle",
    "msle",
    "mean_squared_log_error",
    "mean_absolute_percentage_error",
    "max_error",
    "ece",
    "calibration_error",
    "brier_score",
    "cross_entropy",
    "deviance",
    "negative_log_likelihood",
    "perplexity",
    "ppl",
    "bpb",
    "bits_per_byte",
    "wer",
    "cer",
    "ter",
    "val/nll",
    "word_error_rate",
    "error_rate",
    "eer",
    "fpr",
    "false_positive_rate",
    "edit_distance",
    "fpr_at_95_tpr",
    "FPR@95TPR",
    "jaccard_distance",
    "runtime",
    "seconds_per_step",
]
RISING = [
    "accuracy",
    "top5_accuracy",
    "balanced_accuracy",
    "worst_group_accuracy",
    "worst_class_accuracy",
    "many_shot_accuracy",
    "mean_token_accuracy",
    "accuracy_clean",
    "f1",
    "f1_macro",
    "macro_f1",
    "F1Score",
    "precision",
    "average_precision",
    "recall",
    "recall@5",
    "tpr_at_fpr",
    "tpr@fpr=0.01",
    "recall_at_fpr_0.01",
    "rarest_class_recall",
    "auc",
    "AUROC",
    "roc_auc",
    "mAP",
    "map",
    "map_50",
    "mAP50",
    "mAP@50",
    "ndcg@10",
    "hits@10",
    "pass@1",
    "exact_match",
    "correct_answer",
    "mcc",
    "matthews_correlation",
    "cohen_kappa",
    "pearson",
    "spearmanr",
    "r2",
    "r2_score",
    "explained_variance",
    "bleu",
    "rouge1",
    "rougeL",
    "rougeLsum",
    "true_positive_rate",
    "log_likelihood",
    "loss_reduction",
    "samples_per_second",
    "rewards/accuracies",
    "rewards/margins",
    "score",
    "combined_score",
]
UNKNOWN = [
    "utility",
    "parameter",
    "answer",
    "wermut",
    "epoch",
    "num_tokens",
    "entropy",
    "accuracy_std",
    "std_loss",
    "perplexity_ratio",
    "accuracy_drop",
    "toxicity_score",
    "neg_mean_squared_error",
    "neg_elbo",
    "negative_elbo",
    "f1_false",
    "accuracy_time",
    "aupr_err",
    "f1_error_detection",
]


@pytest.mark.parametrize("prefix", ["", "eval_", "test_", "eval_rare_"])
@pytest.mark.parametrize("names, expected", [(FALLING, False), (RISING, True), (UNKNOWN, None)])
def test_the_words_of_a_name_say_which_way_is_better(names, expected, prefix):
    if prefix == "eval_rare_":
        names = [name for name in names if name not in ("score", "combined_score")]
    assert {name: is_greater_better(prefix + name) for name in names} == dict.fromkeys(names, expected)
    assert {is_lower_better(prefix + name) for name in names} == {expected is False}


def test_every_metric_of_the_recipes_has_a_direction():
    of_recipes = [*CLASSIFICATION, *REGRESSION, *image_metric_names(9, {"many": None, "few": None}), "ece"]
    of_recipes += [metric for name in FUNCTIONS for metric in metric_names(name)]
    assert [name for name in of_recipes if is_greater_better(f"eval_{name}") is None] == []


def test_a_recipe_goes_by_a_metric_that_has_a_direction():
    record = {"eval_loss": 1.0, "eval_entropy": 1.0, "eval_num_tokens": 9, "eval_mean_token_accuracy": 0.5}
    assert main_metric(record) == "eval_mean_token_accuracy"
    assert main_metric({"eval_loss": 1.0, "eval_entropy": 1.0}) == "eval_loss"


@pytest.mark.parametrize(
    "chosen_by, told, metric, expected",
    [
        ("utility", False, "eval_utility", False),
        ("utility", True, "eval_utility", True),
        (
            "eval_utility",
            None,
            "eval_utility",
            True,
        ),  # transformers fills it in, and its best model goes by it
        ("accuracy", False, "eval_accuracy", False),
        ("wer", None, "eval_wer", False),  # what transformers fills in is no one's word
        ("utility", False, "eval_harm", None),
        (None, None, "eval_utility", None),
        (None, None, "eval_accuracy", True),
    ],
)
def test_the_arguments_may_say_which_way_their_best_metric_goes(chosen_by, told, metric, expected, make_args):
    args = make_args(metric_for_best_model=chosen_by, greater_is_better=told)
    assert direction_in(args, metric) is expected


def test_a_direction_that_nobody_says_is_asked_for_before_training(make_args, tmp_path):
    data, trained = classification_data(8), []

    def make_trainer(seed, reweighting, **options):
        trainer = ReweightedTrainer(
            model=tiny_bert(),
            args=make_args(seed=seed, max_steps=1, **options),
            reweighting=reweighting,
            train_dataset=data,
            eval_dataset=data,
            compute_metrics=lambda _: {"utility": 0.5 + len(trained)},
        )
        train = trainer.train
        trainer.train = lambda **keywords: (trained.append(reweighting), train(**keywords))
        return trainer

    given = {"seeds": [0], "metric": "eval_utility", "output_dir": tmp_path / "c"}
    with pytest.raises(ValueError, match=r"'eval_utility' does not say.*greater_is_better=True"):
        compare(make_trainer, **given)
    assert not trained
    for larger in (True, False):
        assert compare(make_trainer, **given, greater_is_better=larger).greater_is_better is larger

    def told(seed, reweighting):
        return make_trainer(seed, reweighting, metric_for_best_model="utility", greater_is_better=False)

    assert compare(told, **given | {"output_dir": tmp_path / "told"}).greater_is_better is False
