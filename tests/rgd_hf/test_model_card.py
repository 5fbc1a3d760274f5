"""Model cards: valid metadata, true facts, and a snippet that runs."""

import inspect
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub import ModelCard
from transformers import (
    BertForMaskedLM,
    BertForTokenClassification,
    GPT2Config,
    GPT2LMHeadModel,
    T5Config,
    T5ForConditionalGeneration,
    Trainer,
    ViTConfig,
    ViTForImageClassification,
    ViTImageProcessor,
    Wav2Vec2Config,
    Wav2Vec2FeatureExtractor,
    Wav2Vec2ForCTC,
    Wav2Vec2ForSequenceClassification,
)

from rgd_hf import ReweightedTrainer, ReweightedTrainingArguments
from rgd_hf.hub.errors import HubError
from rgd_hf.hub.loading_snippet import loading_snippet
from rgd_hf.hub.model_card import TAGS
from tests.helpers.cards import run_snippet, snippet_of, trained, word_tokenizer, written
from tests.helpers.tiny import tiny_bert, tiny_config, tiny_gpt2


def test_signature_begins_with_that_of_the_trainer():
    stock = list(inspect.signature(Trainer.create_model_card).parameters.values())
    ours = list(inspect.signature(ReweightedTrainer.create_model_card).parameters.values())
    assert [(p.name, p.default, p.kind) for p in ours[: len(stock)]] == [
        (p.name, p.default, p.kind) for p in stock
    ]


def test_metadata_of_a_run_on_a_named_data_set(make_args):
    trainer = trained(make_args)
    scores = trainer.evaluate()
    tags = ["sentiment"]
    card = written(
        trainer,
        tags=tags,
        language="en",
        dataset="GLUE SST-2",
        dataset_tags="nyu-mll/glue",
        dataset_args="sst2",
    )
    assert tags == ["sentiment"], "the caller's list was changed"
    data = card.data
    assert set(data.tags) == {"sentiment", "generated_from_trainer", *TAGS}
    assert (data.library_name, data.pipeline_tag) == ("transformers", "text-classification")
    assert (data.datasets, data.language) == (["nyu-mll/glue"], ["en"])
    assert data.metrics == ["accuracy", "matthews_correlation"]
    assert data.base_model is None and data.license is None
    results = {result.metric_name: result for result in data.eval_results}
    assert set(results) == {"Loss", "Accuracy"}, "a NaN is no result"
    assert results["Accuracy"].metric_value == scores["eval_accuracy"]
    assert results["Loss"].metric_value == scores["eval_loss"]
    assert (results["Loss"].dataset_config, results["Loss"].task_type) == ("sst2", "text-classification")


def test_text_names_every_fact(make_args):
    trainer = trained(
        make_args,
        reweighting="chi2",
        tau=2.5,
        normalize_weights=True,
        reweighting_warmup_ratio=0.5,
        logging_steps=1,
    )
    scores = trainer.evaluate()
    card = written(trainer, dataset="my sentences")
    last = [log for log in trainer.state.log_history if "weight_mean" in log][-1]
    for fact in [
        "the my sentences dataset",
        "This model was trained from scratch",
        "chi-squared divergence, tau = 2.5",
        "the gradient of every sample was weighted by `1 + min(loss, 2.5) / 3.5`",
        "by 1 to 1.71",
        "scaled to mean one",
        "All weights were 1 in the first 50% of the steps",
        "| `reweighting` | `chi2` |",
        "| `reweighting_level` | `sample` |",
        "| `normalize_weights` | `True` |",
        f"| Accuracy | {scores['eval_accuracy']:.4f} |",
        f"| Loss | {scores['eval_loss']:.4f} |",
        "Weights at the end of training (step 2)",
        f"| mean weight | {last['weight_mean']:.4g} |",
        f"| mean loss without weights | {last['unweighted_loss']:.4g} |",
        "- learning_rate: 0.5",
        "- seed: 42",
        "@article{kumar2024stochastic,",
        "Transactions on Machine Learning Research",
        "https://arxiv.org/abs/2306.09222",
    ]:
        assert fact in card.text, fact
    assert "More information needed" not in card.text
    assert card.data.eval_results is None and card.data.datasets is None, "no identifier was given"


def test_plain_training_is_called_plain_training(make_args):
    card = written(trained(make_args, reweighting="none", tau=3.0))
    assert "Plain training (empirical risk minimization, ERM)" in card.text
    assert "| `reweighting` | `none` |" in card.text
    assert "tau" not in card.text and "Trained with" not in card.text and "mean weight" not in card.text


def test_class_weights_are_named(make_args):
    for divergence in ("kl", "none"):
        card = written(trained(make_args, reweighting=divergence, class_weights="balanced"))
        assert "| `class_weights` | `balanced` |" in card.text


@pytest.mark.parametrize(
    ("origin", "sentence", "base_model"),
    [
        ("google-bert/bert-base-uncased", "is a fine-tuned version of [google-bert/bert-base-uncased]", True),
        (str(Path(__file__).parent), "is fine-tuned from a local checkpoint", False),
        ("", "was trained from scratch", False),
    ],
)
def test_origin(make_args, origin, sentence, base_model):
    model: Any = tiny_bert()
    model.config._name_or_path = origin
    trainer = ReweightedTrainer(model, make_args())
    card = written(trainer)
    assert f"This model {sentence}" in card.text
    assert card.data.base_model == (origin if base_model else None)
    assert str(Path(__file__).parent) not in card.content


def test_snippet_of_a_run_predicts_what_the_model_predicts(make_args, monkeypatch):
    trainer = trained(make_args)
    card = written(trainer)
    folder = Path(trainer.args.output_dir)
    monkeypatch.chdir(folder.parent)
    variables: dict = {}
    exec(snippet_of(card), variables)
    [found] = variables["model"]("a sentence")
    inputs = word_tokenizer()("a sentence", return_tensors="pt")
    expected = trainer.model.eval()(**inputs).logits.softmax(-1)[0]
    assert found["score"] == pytest.approx(expected.max().item(), rel=1e-5)


def vit() -> ViTForImageClassification:
    return ViTForImageClassification(
        ViTConfig(image_size=16, patch_size=8, hidden_size=16, num_hidden_layers=1, num_attention_heads=2)
    )


def wav2vec2() -> Wav2Vec2ForSequenceClassification:
    return Wav2Vec2ForSequenceClassification(
        Wav2Vec2Config(
            hidden_size=16,
            num_hidden_layers=1,
            num_attention_heads=2,
            intermediate_size=16,
            conv_dim=(8, 8),
            conv_stride=(5, 5),
            conv_kernel=(10, 5),
            num_conv_pos_embeddings=16,
            num_conv_pos_embedding_groups=2,
        )
    )


SNIPPETS = {
    "text": (tiny_bert, word_tokenizer, "text-classification"),
    "several labels": (
        lambda: tiny_bert(problem_type="multi_label_classification"),
        word_tokenizer,
        "top_k=None",
    ),
    "no tokenizer": (tiny_bert, None, "AutoModelForSequenceClassification"),
    "tokens": (
        lambda: BertForTokenClassification(tiny_config()),
        word_tokenizer,
        "token-classification",
    ),
    "masked words": (lambda: BertForMaskedLM(tiny_config()), word_tokenizer, "fill-mask"),
    "next word": (
        lambda: GPT2LMHeadModel(GPT2Config(vocab_size=9, n_embd=16, n_layer=1, n_head=2, n_positions=64)),
        word_tokenizer,
        "text-generation",
    ),
    "encoder-decoder": (
        lambda: T5ForConditionalGeneration(
            T5Config(vocab_size=9, d_model=16, d_kv=8, d_ff=16, num_layers=1, num_heads=2)
        ),
        word_tokenizer,
        "AutoModelForSeq2SeqLM",
    ),
    "images": (vit, lambda: ViTImageProcessor(size={"height": 16, "width": 16}), "image-classification"),
    "audio": (wav2vec2, Wav2Vec2FeatureExtractor, "audio-classification"),
    "no task": (lambda: tiny_bert().bert, None, "import BertModel"),
    "not of transformers": (lambda: torch.nn.Linear(2, 2), None, "load_file"),
}


@pytest.mark.parametrize("kind", SNIPPETS)
def test_snippet_runs(kind, tmp_path):
    make_model, make_processor, expected = SNIPPETS[kind]
    model = make_model()
    ReweightedTrainer(
        model,
        ReweightedTrainingArguments(output_dir=str(tmp_path), report_to=[], use_cpu=True, reweighting="none"),
        processing_class=make_processor() if make_processor else None,
    ).save_model()
    code = loading_snippet(model, "user/model", has_processor=make_processor is not None)
    assert expected in code
    run_snippet(code, "user/model", tmp_path)


def test_adapter(make_args, tmp_path):
    peft = pytest.importorskip("peft")
    tiny_bert(num_labels=5).save_pretrained(tmp_path / "base")
    base = tiny_bert(num_labels=5).from_pretrained(tmp_path / "base")
    config = peft.LoraConfig(task_type="SEQ_CLS", r=2, target_modules=["query"])
    trainer = trained(make_args, peft.get_peft_model(base, config), num_train_epochs=1)
    card = written(trainer, tags=["mine"])
    assert card.data.library_name == "peft"
    assert {"lora", "mine", *TAGS} <= set(card.data.tags)
    assert "KL divergence, tau = 1" in card.text
    assert str(tmp_path) not in card.content and "`path/to/base` is the folder of the base model" in card.text
    code = snippet_of(card).replace("path/to/base", str(tmp_path / "base"))
    model = run_snippet(code, "out", Path(trainer.args.output_dir))["model"]
    inputs = {"input_ids": torch.tensor([[4, 5, 6]])}
    expected = trainer.model.eval()(**inputs).logits
    torch.testing.assert_close(model.eval()(**inputs).logits, expected)


def ctc(size: int) -> Wav2Vec2ForCTC:
    return Wav2Vec2ForCTC(Wav2Vec2Config(**wav2vec2().config.to_diff_dict() | {"vocab_size": size}))


NAMED = {"id2label": {0: "neg", 1: "it's pos"}, "label2id": {"neg": 0, "it's pos": 1}}
MANY = {i: f"class {i}" for i in range(40)}
TOKENS = {"input_ids": torch.tensor([[4, 5, 6]])}
PIXELS = {"pixel_values": torch.ones(1, 3, 16, 16)}
SOUND = {"input_values": torch.linspace(-1, 1, 800)[None]}
OTHER = {"ignore_mismatched_sizes": True}
# The base model, how the user loads it, the new size of its vocabulary, a batch, and what the code has.
ADAPTED = {
    "as the base": (lambda: tiny_bert(num_labels=2), {}, None, TOKENS, "num_labels=2"),
    "fewer classes": (tiny_bert, {"num_labels": 2, **OTHER}, None, TOKENS, "num_labels=2"),
    "named classes": (tiny_bert, {**NAMED, **OTHER}, None, TOKENS, "id2label="),
    "many names": (tiny_bert, {"id2label": MANY, **OTHER}, None, TOKENS, "names of classes"),
    "images": (vit, {"num_labels": 7, **OTHER}, None, PIXELS, "num_labels=7"),
    "letters": (lambda: ctc(9), {"vocab_size": 11, **OTHER}, None, SOUND, "vocab_size=11"),
    "more tokens": (lambda: tiny_bert(num_labels=2), {}, 55, TOKENS, "resize_token_embeddings(55)"),
    "more tokens to write": (tiny_gpt2, {}, 55, TOKENS, "resize_token_embeddings(55)"),
    "both": (tiny_bert, {**NAMED, **OTHER}, 47, TOKENS, "resize_token_embeddings(47)"),
}


@pytest.mark.parametrize("kind", ADAPTED)
def test_code_gives_the_base_model_the_head_and_vocabulary_of_the_adapter(kind, make_args, monkeypatch):
    peft = pytest.importorskip("peft")
    make_base, loading, vocabulary, batch, expected = ADAPTED[kind]
    out = Path(make_args().output_dir)
    base = make_base()
    base.save_pretrained(out.parent / "base")
    model = type(base).from_pretrained(out.parent / "base", **loading)
    if vocabulary:
        model.resize_token_embeddings(vocabulary)
    head = ["classifier"] if hasattr(model, "classifier") else ["lm_head"] if kind == "letters" else None
    config = peft.LoraConfig(target_modules=r".*(query|q_proj|c_attn)", modules_to_save=head)
    adapted = peft.get_peft_model(model, config)
    with torch.no_grad():
        for parameter in adapted.parameters():
            parameter += 0.1 * parameter.requires_grad
    trainer = ReweightedTrainer(adapted, make_args(), reweighting="none")
    # PEFT itself takes the vocabulary of the outputs for that of the inputs.
    adapted.save_pretrained(out, save_embedding_layers=False) if kind == "letters" else trainer.save_model()
    code = snippet_of(written(trainer)).replace("path/to/", "")
    assert expected in code and ("resize" in code) == (vocabulary is not None)
    monkeypatch.chdir(out.parent)
    variables: dict = {}
    exec(code, variables)
    with torch.no_grad():
        found, logits = (m.eval()(**batch).logits for m in (variables["model"], adapted))
    torch.testing.assert_close(found, logits)
    if len(model.config.id2label) < 40:
        assert variables["model"].config.id2label == model.config.id2label
        assert variables["model"].config.label2id == model.config.label2id


@pytest.mark.parametrize("adapter_of", [None, "acme/base"])
@pytest.mark.parametrize("kind", SNIPPETS)
def test_code_names_the_branch_wherever_it_names_the_model(kind, adapter_of):
    make_model, make_processor, _ = SNIPPETS[kind]
    if kind == "not of transformers" and adapter_of:
        return
    arguments = (make_model(), "user/model", make_processor is not None, adapter_of)
    plain = loading_snippet(*arguments, is_repository=True, revision="main")
    assert plain == loading_snippet(*arguments, is_repository=True)
    code = loading_snippet(*arguments, is_repository=True, revision="trial/1")
    branch = ', revision="trial/1"'
    assert code.count(f'"user/model"{branch}') == code.count("user/model") > 0
    assert code.replace(branch, "") == plain
    compile(code, "card", "exec")


def test_every_adapter_of_a_model_is_asked_for_its_base(make_args, tmp_path):
    peft = pytest.importorskip("peft")
    tiny_bert().save_pretrained(tmp_path / "base")
    config = peft.LoraConfig(task_type="SEQ_CLS", r=2, target_modules=["query"])
    model = peft.get_peft_model(tiny_bert().from_pretrained(tmp_path / "base"), config)
    model.peft_config["default"].base_model_name_or_path = "google/bert-tiny"
    model.add_adapter("other", peft.LoraConfig(task_type="SEQ_CLS", r=2, target_modules=["value"]))
    trainer = ReweightedTrainer(model, make_args())
    with pytest.raises(HubError, match=r"a folder of this machine .*peft_config\[\"other\"\]") as raised:
        trainer.init_hf_repo()
    remedy = re.search(r"`(model\.peft_config.*)`", str(raised.value))
    assert remedy is not None
    exec(remedy.group(1).replace("OWNER/NAME", "google/bert-tiny"), {"model": model})
    with pytest.raises(HubError, match="HF_HUB_OFFLINE"):
        trainer.init_hf_repo()
    trainer.save_model()
    assert all(
        str(tmp_path) not in path.read_text() for path in Path(trainer.args.output_dir).rglob("*.json")
    )


def test_card_of_a_model_without_a_configuration(make_args):
    def losses(outputs, labels):
        return torch.nn.functional.cross_entropy(outputs["logits"], labels, reduction="none")

    class Plain(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = torch.nn.Linear(2, 3)

        def forward(self, x):
            return {"logits": self.layer(x)}

    card = written(ReweightedTrainer(Plain(), make_args(), per_sample_loss_fn=losses))
    assert "| losses | of the function `losses` |" in card.text
    assert "was trained from scratch" in card.text


def test_base_class_with_a_card_of_its_own(make_args):
    """TRL's trainers write other cards, by a method with other arguments."""
    trl = pytest.importorskip("trl")
    from trl.trainer.base_trainer import _BaseTrainer

    from rgd_hf import ReweightingMixin

    class WithItsOwnCard(ReweightingMixin, _BaseTrainer):  # type: ignore[misc]
        _name = "SFT"

    card = written(WithItsOwnCard(tiny_bert(), make_args()), dataset_name="user/sentences", tags="mine")
    assert trl.__version__ in card.text and "KL divergence, tau = 1" in card.text
    assert card.text.count("```python") == 1
    assert {"mine", *TAGS} <= set(card.data.tags)


def test_push_to_hub_writes_the_card_before_the_upload(make_args):
    trainer = trained(make_args, hub_model_id="user/sentences", push_to_hub=False)
    trainer.hub_model_id = "user/sentences"  # as after the repository was made, which needs the network
    with pytest.raises(HubError, match=r"HF_HUB_OFFLINE.*It is kept in"):
        trainer.push_to_hub(tags="mine", dataset="my sentences")
    card = ModelCard.load(Path(trainer.args.output_dir) / "README.md")
    assert card.text.lstrip().split("\n# ")[1].startswith("sentences\n")
    assert "mine" in card.data.tags and "the my sentences dataset" in card.text
    assert run_snippet(snippet_of(card), "user/sentences", Path(trainer.args.output_dir))["model"]


def test_only_the_first_process_writes(make_args):
    class OnAnotherProcess(ReweightedTrainer):
        def is_world_process_zero(self) -> bool:
            return False

    trainer = OnAnotherProcess(tiny_bert(), make_args())
    trainer.create_model_card()
    assert not (Path(trainer.args.output_dir) / "README.md").exists()
