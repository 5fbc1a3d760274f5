"""Training goes on from a classifier whose classes stand in another order: data and user keep their numbers."""

import random

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from torch import nn
from torch.nn.functional import cross_entropy
from transformers import (
    AutoConfig,
    AutoModelForImageClassification,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    BartConfig,
    BartForSequenceClassification,
    DeiTConfig,
    DeiTForImageClassificationWithTeacher,
    GPT2Config,
    GPT2ForSequenceClassification,
    ReformerConfig,
    ReformerForSequenceClassification,
    ResNetConfig,
    ResNetForImageClassification,
    RobertaConfig,
    RobertaForSequenceClassification,
    ViTConfig,
    ViTForImageClassification,
    ViTImageProcessor,
)

import glue
import imagenet
from helpers.recipes import changed, output_of, sentences
from helpers.tiny import tiny_bert
from rgd_hf.scripts.errors import UserError
from rgd_hf.scripts.training.class_order import reorder_outputs, tell_order
from rgd_hf.scripts.vision.models import ImageModelArguments, build_image_classifier

WIDTHS = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}


def plain(name):
    return name.lower().replace("_", " ")


def with_order(model_dir, folder, names):
    """A text classifier whose outputs are called `names`."""
    torch.manual_seed(0)
    still = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    model = AutoModelForSequenceClassification.from_pretrained(model_dir, num_labels=len(names), **still)
    with torch.no_grad():
        model.classifier.weight.normal_()
        model.classifier.bias.copy_(torch.arange(len(names)) / 3)
    model.config.id2label = dict(enumerate(names))
    model.config.label2id = {name: place for place, name in enumerate(names)}
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(model_dir).save_pretrained(folder)
    return str(folder)


@torch.no_grad()
def logits_of(folder, rows, columns, names):
    """What a saved model says by itself, its outputs found by their names: `[rows, names]`."""
    model = AutoModelForSequenceClassification.from_pretrained(folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    places = {plain(name): place for place, name in model.config.id2label.items()}
    texts = [tokenizer(*(row[column] for column in columns), return_tensors="pt") for row in rows]
    logits = torch.cat([model(**text).logits for text in texts])
    return logits[:, [places[plain(name)] for name in names]]


CASES = {  # the model's names, the data's, columns, validation splits
    "texts": (("Good", "bad"), ("bad", "good"), ("text",), ("validation",)),
    "several": (("Good", "bad"), ("bad", "good"), ("text",), ("validation",)),
    "mnli": (
        ("CONTRADICTION", "ENTAILMENT", "NEUTRAL"),
        ("entailment", "neutral", "contradiction"),
        ("premise", "hypothesis"),
        ("validation_matched", "validation_mismatched"),
    ),
    "mrpc": (
        ("equivalent", "not equivalent"),
        ("not_equivalent", "equivalent"),
        ("sentence1", "sentence2"),
        ("validation",),
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_a_classifier_in_another_order_takes_the_datas(case, tiny_run, tiny_model_dir, tmp_path, capsys):
    trained, names, columns, splits = CASES[case]
    where = with_order(tiny_model_dir, tmp_path / "model", trained)
    rows = {
        split: [
            {**dict.fromkeys(columns, row["text"]), "label": min(number % 4, len(names) - 1)}
            for number, row in enumerate(sentences(24, seed=seed))
        ]
        for seed, split in enumerate(("train", *splits))
    }
    files = tmp_path / "data"
    files.mkdir()
    for split, of_split in rows.items():
        table = pd.DataFrame(of_split)
        if case in ("texts", "several"):
            table["label"] = [
                [names[number]] if case == "several" else names[number] for number in table.label
            ]
        table.to_parquet(files / f"{split}.parquet")
    weights = [1.0, 100.0, 10.0][: len(names)]
    run = changed(
        tiny_run,
        **dict.fromkeys(("train_file", "validation_file", "num_train_epochs")),
        dataset_dir=files,
        task_name=case if case in ("mnli", "mrpc") else None,
        model_name_or_path=where,
        max_steps=1,
        per_device_train_batch_size=24,
        learning_rate=0,
        reweighting="none",
        class_weights=None if case == "several" else ",".join(map(str, weights)),
    )
    record = glue.main([*run, "--save_predictions"])
    out = output_of(run)
    config = AutoConfig.from_pretrained(out)
    assert list(config.id2label.values()) == list(names)
    assert config.label2id == {name: number for number, name in enumerate(names)}
    for split in splits:
        part = split.removeprefix("validation").removeprefix("_")
        expected = logits_of(where, rows[split], columns, names)
        assert torch.allclose(logits_of(out, rows[split], columns, names), expected, atol=1e-5)
        table = pd.read_parquet(out / f"predictions{f'_{part}' if part else ''}.parquet")
        labels, predicted = (np.stack(table[column].to_list()) for column in ("label", "prediction"))
        given = np.array([row["label"] for row in rows[split]])
        if case == "several":
            assert (labels == np.eye(len(names))[given]).all()
            assert (predicted == (expected > 0).numpy()).all()
        else:
            assert (labels == given).all() and (predicted == expected.argmax(1).numpy()).all()
            right = (expected.argmax(1).numpy() == given).mean()
            assert record["_".join(filter(None, ("eval", part, "accuracy")))] == pytest.approx(right)
    if case != "several":
        given = torch.tensor([row["label"] for row in rows["train"]])
        assert record["train_class_counts"] == given.bincount().tolist()
        losses = logits_of(where, rows["train"], columns, names), given, torch.tensor(weights)
        assert record["train_loss"] == pytest.approx(cross_entropy(*losses).item(), rel=1e-4)
    assert capsys.readouterr().out.count("they are reordered") == 1


def test_each_run_of_a_comparison_and_a_resumed_one_reorder_once(tiny_run, tiny_model_dir, tmp_path, capsys):
    where = with_order(tiny_model_dir, tmp_path / "model", ("1", "0"))
    rows = sentences(24, seed=1)
    run = changed(
        tiny_run,
        **{"num_train_epochs": None, "model_name_or_path": where, "learning_rate": 0},
        **{"max_steps": 4, "save_strategy": "steps", "save_steps": 2, "save_total_limit": 2},
    )
    run += ["--compare"]
    first = glue.main(run)
    assert capsys.readouterr().out.count("they are reordered") == 1
    kept = output_of(run) / "kl"
    for left in (output_of(run) / "all_results.json", kept / "all_results.json"):
        left.unlink()
    (kept / "checkpoint-4").rename(tmp_path / "left_out")
    second = glue.main(run)
    assert "going on from" in capsys.readouterr().out
    assert AutoConfig.from_pretrained(kept).id2label == {0: "0", 1: "1"}
    expected = logits_of(where, rows, ["text"], "01")
    for out in (output_of(run) / "erm", kept):
        assert torch.allclose(logits_of(out, rows, ["text"], "01"), expected, atol=1e-5)
    for before, after in zip(first["runs"].values(), second["runs"].values()):
        assert before["eval_loss"] == pytest.approx(after["eval_loss"], rel=1e-6)


@pytest.mark.parametrize("source", ["folders", "streamed"])
def test_images_keep_the_numbers_of_their_classes(source, tmp_path, capsys):
    rows = []
    for number, name in enumerate("ab"):
        (tmp_path / "photos" / name).mkdir(parents=True)
        for i in range(8):
            path = tmp_path / "photos" / name / f"{i}.png"
            Image.new("RGB", (32, 32), (30 * i, 200 * number, 0)).save(path)
            rows.append({"image": {"bytes": path.read_bytes(), "path": path.name}, "label": number})
    torch.manual_seed(0)
    model_dir, out = tmp_path / "model", tmp_path / "out"
    if source == "folders":
        model = ViTForImageClassification(ViTConfig(**WIDTHS, image_size=8, patch_size=4))
        ViTImageProcessor(size={"height": 8, "width": 8}).save_pretrained(model_dir)
        data = ["--data_dir", str(tmp_path / "photos"), "--holdout_fraction", "0.5", "--class_weights", "1,9"]
    else:
        args = ImageModelArguments(model_name_or_path="timm/test_vit", from_scratch=True, image_size=32)
        model = build_image_classifier(args, "ba").model
        random.Random(0).shuffle(rows)
        pd.DataFrame(rows).to_parquet(tmp_path / "rows.parquet")
        data = ["--streaming", "--class_names", "a", "b"]
        data += ["--data_dir", str(tmp_path / "rows.parquet"), str(tmp_path / "rows.parquet")]
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    model.config.id2label, model.config.label2id = {0: "b", 1: "a"}, {"b": 0, "a": 1}
    model.save_pretrained(model_dir)
    record = imagenet.main(
        [
            *data,
            *("--model_name_or_path", str(model_dir), "--output_dir", str(out), "--max_steps", "1"),
            *("--learning_rate", "0", "--use_cpu", "--disable_tqdm", "true", "--save_predictions"),
        ]
    )
    table = pd.read_parquet(out / "predictions.parquet")
    if source == "folders":
        assert record["train_class_counts"] == [4, 4] and table["label"].tolist() == [0] * 4 + [1] * 4
    else:
        assert table["label"].tolist() == [row["label"] for row in rows]
    saved = AutoModelForImageClassification.from_pretrained(out)
    assert saved.config.id2label == {0: "a", 1: "b"}
    side = 8 if source == "folders" else 32
    pixels = torch.randn(4, 3, side, side)
    with torch.no_grad():
        expected = model.eval()(pixel_values=pixels).logits.flip(1)
        assert torch.allclose(saved(pixel_values=pixels).logits, expected, rtol=1e-4, atol=1e-4)
    assert capsys.readouterr().out.count("they are reordered") == 1


class ConvolutionHead(nn.Module):
    """A convolution of kernel 1 before the mean over all places, normalized in its weight."""

    def __init__(self):
        super().__init__()
        self.body = nn.Conv2d(3, 3, 3)
        self.head = nn.utils.parametrizations.weight_norm(nn.Conv2d(3, 3, 1))

    def forward(self, pixel_values):
        return (self.head(self.body(pixel_values).relu()).mean((2, 3)),)


class ProductHead(nn.Module):
    """A layer of its own kind, behind one that has as many outputs as there are classes."""

    def __init__(self):
        super().__init__()
        self.body = nn.Linear(3, 3)
        self.prototypes = nn.Parameter(torch.randn(3, 3))

    def forward(self, pixel_values):
        return (self.body(pixel_values.mean((2, 3))).tanh() @ self.prototypes.T,)


NARROW = {"vocab_size": 50, "num_labels": 3}
BUILT = {
    "layer of its own": lambda: tiny_bert(num_labels=3),
    "as many classes as channels": lambda: tiny_bert(num_labels=16),
    "two layers": lambda: RobertaForSequenceClassification(RobertaConfig(**WIDTHS, **NARROW)),
    "no bias": lambda: GPT2ForSequenceClassification(
        GPT2Config(n_embd=16, n_layer=1, n_head=2, pad_token_id=0, **NARROW)
    ),
    "encoder-decoder": lambda: BartForSequenceClassification(
        BartConfig(d_model=16, encoder_layers=1, decoder_layers=1, eos_token_id=2, **NARROW)
    ),
    "random attention": lambda: ReformerForSequenceClassification(
        ReformerConfig(
            attn_layers=["lsh"],
            axial_pos_embds=False,
            num_buckets=2,
            is_decoder=False,
            lsh_attn_chunk_length=2,
            **NARROW,
        )
    ),
    "two heads": lambda: DeiTForImageClassificationWithTeacher(
        DeiTConfig(**WIDTHS, image_size=8, patch_size=4, num_labels=3)
    ),
    "convolutions": lambda: ResNetForImageClassification(
        ResNetConfig(embedding_size=8, hidden_sizes=[8], depths=[1], num_labels=3)
    ),
    "convolution head": ConvolutionHead,
}


@pytest.mark.parametrize("kind", BUILT)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_the_logits_are_the_old_ones_reordered(kind, dtype):
    torch.manual_seed(0)
    model = BUILT[kind]().eval().to(dtype)
    inputs = {"input_ids": torch.tensor([[5, 3, 4, 7, 8, 9, 6, 2]])}
    if kind in ("two heads", "convolutions", "convolution head"):
        inputs = {"pixel_values": torch.randn(2, 3, 8, 8).to(dtype)}
    states = torch.get_rng_state(), np.random.get_state()[1].tolist(), random.getstate()

    @torch.no_grad()
    def logits():
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(1)
            return model(**inputs)[0]

    before = logits()
    trained = [f"Class {number}" for number in range(before.shape[1])]
    order = torch.randperm(len(trained), generator=torch.Generator().manual_seed(2)).tolist()
    assert order != sorted(order)
    reorder_outputs(model, "it", dict(enumerate(trained)), [f"class_{number}" for number in order], inputs)
    torch.testing.assert_close(logits(), before[:, order])
    assert all(parameter.requires_grad for parameter in model.parameters())
    assert torch.equal(torch.get_rng_state(), states[0]) and random.getstate() == states[2]
    assert np.random.get_state()[1].tolist() == states[1]


def test_what_cannot_be_reordered_is_refused_with_both_orders():
    model, inputs = ProductHead(), {"pixel_values": torch.rand(1, 3, 8, 8)}
    with pytest.raises(UserError, match=r"'c', 'a', 'b'.*'a', 'b', 'c'.*was fine-tuned from"):
        reorder_outputs(model, "it", dict(enumerate("cab")), "abc", inputs)
    before = model(**inputs)[0]
    for same in ("abc", "xyz"):
        reorder_outputs(model, "it", dict(enumerate(same)), "abc", inputs)
    assert torch.equal(model(**inputs)[0], before)


@pytest.mark.parametrize(
    ("trained", "names", "told"),
    [
        (["b", "a"], ["a", "b"], "reordered"),
        (["a", "b"], ["a", "b"], None),
        (["LABEL_0", "LABEL_1"], ["a", "b"], None),
        (["x", "y"], ["a", "b"], "weights of the other classes"),
        (["c", "a", "b"], ["a", "b", "d"], "weights of the other classes"),
        (["a", "b", "crane", "crane"], ["a", "b", "crane (1)", "crane (2)"], None),
    ],
)
def test_other_classes_are_told_once(trained, names, told, capsys):
    tell_order("model", dict(enumerate(trained)), names)
    said = capsys.readouterr().out
    assert (told in said and said.count("\n") == 1) if told else not said
