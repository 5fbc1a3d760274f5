"""Which way a metric is better, by the words of its name; what cannot be told from them is not guessed."""

import re
from typing import Any

_LOWER = frozenset(
    """
    loss losses error errors err nll logloss bce xent crossentropy perplexity perplexities ppl bits bpb bpc bpd mse
    rmse mae mape smape wmape mdape mase medae msle rmsle nmse nrmse rmsd rmspe rae rse crps brier deviance hinge
    pinball wer cer ter mer wil der eer fer fpr fnr fdr false incorrect inaccuracy failures mistakes
    misclassification misclassified violations ece mce miscalibration distance levenshtein divergence kld
    wasserstein emd mmd fid kid fad lpips mcd distortion dissimilarity regret risk cost gap aic bic runtime time
    seconds latency duration memory
    """.split()  # noqa: SIM905
)
_GREATER = frozenset(
    """
    accuracy accuracies acc correct precision recall sensitivity specificity tpr tnr ppv npv f1 f2 fbeta fscore
    fmeasure f1score auc auroc rocauc roc auprc aupr aucpr prauc ap map mar lrap mrr ndcg dcg hit hits match matches
    exact em iou miou dice jaccard mcc matthews kappa agreement correlation corr pearson pearsonr spearman spearmanr
    kendall kendalltau concordance cindex r2 rsquared explained bleu sacrebleu gleu rouge rougel rougelsum meteor
    chrf cider spice bertscore bleurt comet wip psnr ssim snr sdr pesq stoi mos similarity silhouette purity
    homogeneity completeness nmi ami ari likelihood elbo reward rewards margin margins success win wins winrate pass
    throughput reduction improvement gain gains
    """.split()  # noqa: SIM905
)
# With one of these it may be either: a smaller std of the accuracy, or the entropy of a policy.
_EITHER = frozenset(
    """
    std stdev stderr variance var ratio drop diff difference delta change minus entropy
    """.split()  # noqa: SIM905
)
_PHRASES = {
    "cross_entropy": "crossentropy",
    "explained_variance": "explained",
    "negative_log_likelihood": "nll",
    "neg_log_likelihood": "nll",
    "r_squared": "rsquared",
    "c_index": "cindex",
    "f_score": "fscore",
    "f_measure": "fmeasure",
    "f_beta": "fbeta",
    "true_positive": "tpr",
    "true_negative": "tnr",
    "per_second": "throughput",
}
# What is said of another word, which decides although it is of the other direction: `jaccard_distance`, `loss_reduction`.
_LAST = frozenset(
    ["loss", "losses", "error", "errors", "distance", "reduction", "improvement", "gain", "gains"]
)
# With `score` they say nothing more than a score does, as in `combined_score`.
_OF_A_SCORE = frozenset(
    """
    score scores eval test val valid validation train dev overall combined mean average avg macro micro weighted
    total
    """.split()  # noqa: SIM905
)


def is_greater_better(metric: str) -> bool | None:
    """Whether larger values of a metric are better, by its name.

    The words that are known decide, those before an `at` (`recall_at_fpr_0.1`); where they differ, the last one if it is
    said of the others (`loss_reduction`). Words are whole ones, apart from compounds that end with `loss`, `error`, `mse` or `accuracy`.

    Args:
        metric: with or without prefixes, as `trainer.evaluate()` names it.

    Returns:
        True for accuracies, F1 or correlations, False for losses, errors or times; None where the name does not say it:
        `eval_utility`, `accuracy_std`.
    """
    joined = f"_{'_'.join(_words(metric.replace('@', '_at_')))}_"
    for phrase, word in _PHRASES.items():
        joined = joined.replace(f"_{phrase}_", f"_{word}_")
    words = joined.strip("_").split("_")
    if _EITHER.intersection(words):
        return None
    if "at" in words[1:]:  # recall_at_fpr_0.1, fpr_at_95_tpr
        words = words[: words.index("at", 1)]
    known = [found for found in map(_direction, words) if found is not None]
    if not known:
        # Scores rise and losses fall, as in scikit-learn, but that of something particular may be one of harm.
        return True if {"score", "scores"}.intersection(words) and _OF_A_SCORE.issuperset(words) else None
    if len({*known}) > 1 and words[-1] not in _LAST:  # f1_false, aupr_err
        return None
    # scikit-learn's scorers negate what falls, and others call what belongs to the negative class so.
    likelihoods = {"likelihood", "elbo"}.intersection(words)
    if ("neg" in words and not known[-1]) or (likelihoods and {"neg", "negative"}.intersection(words)):
        return None
    return known[-1]


def is_lower_better(metric: str) -> bool:
    """Whether smaller values of a metric are known to be better."""
    return is_greater_better(metric) is False


def direction_in(args: Any, metric: str) -> bool | None:
    """As `is_greater_better`, for a training that may have been told: `greater_is_better` of `metric_for_best_model`.

    Args:
        args: `TrainingArguments`.
        metric: as `trainer.evaluate()` names it.
    """
    chosen_by, known = args.metric_for_best_model, is_greater_better(metric)
    if chosen_by is None or chosen_by.removeprefix("eval_") != metric.removeprefix("eval_"):
        return known
    told = args.greater_is_better
    # What transformers fills in, which takes all but losses to rise, is no better word than the name's; where that has none,
    # the best model goes by it.
    filled_in = not chosen_by.endswith("loss")
    return told if known is None or (told is not None and told != filled_in) else known


def _words(metric: str) -> list[str]:
    words = []
    for part in re.split(r"[^A-Za-z0-9]+", metric):
        whole = part.lower()
        without_number = whole.rstrip("0123456789")  # map50, rouge1
        if _direction(whole) is not None or not without_number:
            words.append(whole)
        elif _direction(without_number) is not None:
            words.append(without_number)
        else:
            pieces = re.findall(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+", part)
            words += [piece.lower() for piece in pieces]
    return [word for word in words if word]


def _direction(word: str) -> bool | None:
    if word in _GREATER or word.endswith("accuracy"):
        return True
    if word in _LOWER or word.endswith(("loss", "error", "mse")):
        return False
    return None
