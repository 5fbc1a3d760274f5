"""Training goes on from a classifier whose classes stand in another order: each output keeps its class."""

import pandas as pd
import pytest
import torch
from PIL import Image
from transformers import (
    AutoConfig,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    ViTConfig,
    ViTForImageClassification,
    ViTImageProcessor,
)

import glue
import imagenet
from helpers.recipes import changed, output_of, sentences
from rgd_hf.scripts.training.class_order import in_order_of_model


def with_order(model_dir, folder, names, order):
    """A classifier with `names`, whose outputs stand in `order`; the same function of a text, name by name."""
    torch.manual_seed(0)
    model = AutoModelForSequenceClassification.from_pretrained(model_dir, num_labels=len(names))
    with torch.no_grad():
        model.classifier.weight.normal_()
        model.classifier.bias.copy_(torch.arange(len(names)) / 3)
        for parameter in (model.classifier.weight, model.classifier.bias):
            parameter.copy_(parameter[order].clone())
    model.config.id2label = {place: names[number] for place, number in enumerate(order)}
    model.config.label2id = {name: place for place, name in model.config.id2label.items()}
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(model_dir).save_pretrained(folder)
    return str(folder)


def task(folder, name, splits, columns, classes):
    folder.mkdir()
    for seed, split in enumerate(("train", *splits)):
        rows = [
            {**dict.fromkeys(columns, row["text"]), "label": number % classes}
            for number, row in enumerate(sentences(24, seed=seed))
        ]
        pd.DataFrame(rows).to_parquet(folder / f"{split}.parquet")
    return ["--task_name", name, "--dataset_dir", str(folder)]


@pytest.mark.parametrize("case", ["texts", "several", "mnli", "mrpc"])
def test_scores_do_not_depend_on_the_order_of_a_models_classes(
    case, tiny_run, tiny_model_dir, tmp_path, capsys
):
    still = changed(tiny_run, num_train_epochs=None, max_steps=1, learning_rate=0, save_strategy="no")
    names, told = ("Good", "bad"), ["bad", "good"]
    if case in ("texts", "several"):
        wrap = (lambda name: [name]) if case == "several" else (lambda name: name)
        for option, seed in (("train_file", 0), ("validation_file", 1)):
            path = tmp_path / f"{option}.jsonl"
            rows = [{**row, "label": wrap(told[row["label"]])} for row in sentences(24, seed=seed)]
            pd.DataFrame(rows).to_json(path, orient="records", lines=True)
            still = changed(still, **{option: path})
    else:
        still = changed(still, train_file=None, validation_file=None)
        if case == "mnli":
            names = ("ENTAILMENT", "NEUTRAL", "CONTRADICTION")
            splits, columns = ("validation_matched", "validation_mismatched"), ("premise", "hypothesis")
        else:
            names = ("not equivalent", "equivalent")
            splits, columns = ("validation",), ("sentence1", "sentence2")
        still += task(tmp_path / "data", case, splits, columns, len(names))
    found = []
    for order in (list(range(len(names))), list(range(len(names)))[::-1]):
        where = with_order(tiny_model_dir, tmp_path / f"model{order[0]}", names, order)
        out = changed(still, model_name_or_path=where, output_dir=tmp_path / f"out{order[0]}")
        record = glue.main(out)
        found.append(
            {
                k: v
                for k, v in record.items()
                if k.startswith("eval_") and "second" not in k and "time" not in k
            }
        )
        trained = AutoConfig.from_pretrained(output_of(out)).id2label
        wanted = AutoConfig.from_pretrained(where).id2label
        assert [n.lower().replace("_", " ") for n in trained.values()] == [n.lower() for n in wanted.values()]
    assert found[0] == pytest.approx(found[1], rel=1e-5) and len(found[0]) > 1
    assert "Classes are numbered as in" in capsys.readouterr().out


def test_images_are_numbered_as_a_models_classes(tmp_path):
    for number, name in enumerate("ab"):
        (tmp_path / "photos" / name).mkdir(parents=True)
        for i in range(8):
            Image.new("RGB", (8, 8), (20 * i, 200 * number, 0)).save(tmp_path / "photos" / name / f"{i}.png")
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    found = []
    for names in ("ab", "ba"):
        torch.manual_seed(0)
        model = ViTForImageClassification(ViTConfig(**sizes, image_size=8, patch_size=4))
        with torch.no_grad():
            model.classifier.weight.normal_()
            if names == "ba":
                model.classifier.weight.copy_(model.classifier.weight.flip(0))
        model.config.id2label, model.config.label2id = (
            dict(enumerate(names)),
            {n: i for i, n in enumerate(names)},
        )
        model.save_pretrained(tmp_path / names)
        ViTImageProcessor(size={"height": 8, "width": 8}).save_pretrained(tmp_path / names)
        record = imagenet.main(
            [
                *("--data_dir", str(tmp_path / "photos"), "--holdout_fraction", "0.5", "--max_steps", "1"),
                *(
                    "--model_name_or_path",
                    str(tmp_path / names),
                    "--output_dir",
                    str(tmp_path / f"out_{names}"),
                ),
                *("--learning_rate", "0", "--save_strategy", "no", "--use_cpu", "--disable_tqdm", "true"),
            ]
        )
        found.append((record["eval_loss"], record["eval_accuracy"]))
        assert list(AutoConfig.from_pretrained(tmp_path / f"out_{names}").id2label.values()) == list(names)
    assert found[0] == pytest.approx(found[1], rel=1e-5)


@pytest.mark.parametrize(
    ("trained", "names", "ordered", "told"),
    [
        (["b", "a"], ["a", "b"], ("b", "a"), "numbered"),
        (["a", "b"], ["a", "b"], ("a", "b"), None),
        (["LABEL_0", "LABEL_1"], ["a", "b"], ("a", "b"), None),
        (["x", "y"], ["a", "b"], ("a", "b"), "weights of the other classes"),
        (["c", "a", "b"], ["a", "b", "d"], ("a", "b", "d"), "weights of the other classes"),
        (["a", "b", "crane", "crane"], ["a", "b", "crane (1)", "crane (2)"], None, None),
    ],
)
def test_other_classes_are_told_once(trained, names, ordered, told, capsys):
    assert in_order_of_model("model", dict(enumerate(trained)), names) == (ordered or tuple(names))
    said = capsys.readouterr().out
    assert (told in said and said.count("\n") == 1) if told else not said
