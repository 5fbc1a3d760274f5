"""Where domains come from: every layout gives the same environments, and what cannot work is said before training."""

import io

import numpy as np
import pytest
from datasets import ClassLabel, Dataset, Features, Value
from PIL import Image
from transformers import AutoTokenizer

import domainbed
from rgd_hf.scripts.domains.digits import ANGLES, coloured_digits, grey_images, rotated_digits
from rgd_hf.scripts.domains.environments import Environment
from rgd_hf.scripts.domains.sources import read_directory, read_table
from rgd_hf.scripts.domains.views import ImageView, TextView
from rgd_hf.scripts.errors import UserError

DOMAINS = {"photo": 200, "sketch": 20}
CLASSES = ("cat", "dog")


def picture(value):
    return Image.fromarray(np.full((6, 6, 3), value, np.uint8))


def png(value):
    buffer = io.BytesIO()
    picture(value).save(buffer, "png")
    return {"bytes": buffer.getvalue(), "path": None}


def samples():
    return [
        (domain, c, value + 5 * n) for domain, value in DOMAINS.items() for c in CLASSES for n in range(3)
    ]


def write_folders(root, leave_out=()):
    for number, (domain, name, value) in enumerate(samples()):
        folder = root / domain / name
        folder.mkdir(parents=True, exist_ok=True)
        if (domain, name) not in leave_out:
            picture(value).save(folder / f"{number:02}.png")
    return root


def as_arrays(data):
    return {
        e.name: [
            (np.asarray(e.inputs[i])[0, 0, 0].item(), data.classes[e.labels[i]]) for i in range(len(e.labels))
        ]
        for e in data.environments
    }


def test_folders_parquet_and_a_column_give_the_same_environments(tmp_path):
    expected = {d: [(v, c) for domain, c, v in samples() if domain == d] for d in DOMAINS}
    assert as_arrays(read_directory(write_folders(tmp_path / "folders"), "label")) == expected

    rows = [{"image": png(v), "animal": c, "place": d} for d, c, v in samples()]
    (tmp_path / "files").mkdir()
    for domain in DOMAINS:
        part = Dataset.from_list([row for row in rows if row["place"] == domain])
        part.remove_columns("place").to_parquet(tmp_path / "files" / f"{domain}.parquet")
    assert as_arrays(read_directory(tmp_path / "files", "animal")) == expected

    Dataset.from_list(rows).to_parquet(tmp_path / "all.parquet")
    assert as_arrays(read_table("place", "animal", data_file=str(tmp_path / "all.parquet"))) == expected


def test_texts_with_a_domain_column(tmp_path):
    rows = [{"text": f"{d} {n}", "label": n % 2, "domain": d} for d in ("tweet", "movie") for n in range(6)]
    Dataset.from_list(rows).to_csv(tmp_path / "texts.csv")
    data = read_table("domain", "label", data_file=str(tmp_path / "texts.csv"))
    assert data.kind == "text" and data.names == ["movie", "tweet"] and data.classes == ("0", "1")
    assert data.environments[1].inputs[:2] == ["tweet 0", "tweet 1"]
    assert data.environments[1].labels.tolist() == [0, 1, 0, 1, 0, 1]


def test_a_pair_of_texts_is_not_cut_to_its_first(tmp_path):
    rows = [
        {"text1": f"{d} {n}", "text2": "other", "label": n % 2, "domain": d} for d in "ab" for n in range(6)
    ]
    path = str(tmp_path / "pairs.csv")
    Dataset.from_list(rows).to_csv(path)
    with pytest.raises(UserError, match=r"'text1' and 'text2', a pair, .*--text_column text1"):
        read_table("domain", "label", data_file=path)
    for column, first in (("text1", "a 0"), ("text2", "other")):
        data = read_table("domain", "label", data_file=path, text_column=column)
        assert data.environments[0].inputs[0] == first
    options = ["--data_file", path, "--held_out", "a", "--use_cpu"]
    with pytest.raises(UserError, match="a pair"):
        domainbed.main([*options, "--output_dir", str(tmp_path / "out")])
    Dataset.from_list(rows).rename_columns({"text1": "left", "text2": "right"}).to_csv(path)
    with pytest.raises(UserError, match=r"cannot tell which column .*: name one with --text_column[.]"):
        read_table("domain", "label", data_file=path)


def test_a_domain_that_lacks_the_text_is_named(tmp_path):
    for domain, column in (("a", "text"), ("b", "words")):
        rows = [{column: f"{n}", "label": n % 2} for n in range(4)]
        Dataset.from_list(rows).to_parquet(tmp_path / f"{domain}.parquet")
    with pytest.raises(UserError, match=r"the domain 'b' lacks the column\(s\) 'text'; found: 'words'"):
        read_directory(tmp_path, "label")


@pytest.mark.parametrize(
    "options,message",
    [
        (["--dataset_dir", "nowhere"], "no directory 'nowhere'"),
        ([], "exactly one source of data, not 0"),
        (["--dataset", "rotated_digits", "--dataset_dir", "."], "exactly one source of data, not 2"),
        (["--dataset", "pacs"], "choose rotated_digits, .*owner/name"),
        (["--dataset", "rotated_digits", "--max_eval_samples", "0"], "--max_eval_samples must be at least 1"),
        (["--dataset", "rotated_digits", "--image_size", "0"], "--image_size must be at least 1"),
        (
            ["--dataset", "rotated_digits", "--weights", "none", "--model_name_or_path", "none_such"],
            "list_models",
        ),
    ],
)
def test_bad_options_are_told_before_training(options, message, tmp_path):
    with pytest.raises(UserError, match=message):
        domainbed.main([*options, "--held_out", "0", "--output_dir", str(tmp_path), "--use_cpu"])
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "leave_out,message",
    [
        ([("sketch", "dog")], "'sketch' has no image of the class.*'dog'"),
        ([("sketch", "dog"), ("sketch", "cat")], "'sketch' have no images"),
    ],
)
def test_bad_folders(tmp_path, leave_out, message):
    with pytest.raises(UserError, match=message):
        read_directory(write_folders(tmp_path, leave_out), "label")


def test_domains_need_two_classes_and_samples_of_each(tmp_path, capsys):
    root = write_folders(tmp_path / "folders")
    (root / "photo" / "cow").mkdir()
    with pytest.raises(UserError, match=r"folders has no image of the class\(es\) 'cow' in any domain"):
        read_directory(root, "label")
    (root / "photo" / "cow").rmdir()
    for domain in DOMAINS:
        (root / domain / "dog").rename(tmp_path / domain)
    with pytest.raises(UserError, match=r"the domains have 1 class\(es\), 'cat': two are needed"):
        read_directory(root, "label")
    (tmp_path / "files").mkdir()
    for domain in DOMAINS:
        labels = ClassLabel(names=["cat", "dog", "cow"])
        features = Features({"text": Value("string"), "label": labels})
        rows = Dataset.from_dict({"text": ["a", "b"] * 5, "label": [0, 1] * 5}, features=features)
        rows.to_parquet(tmp_path / "files" / f"{domain}.parquet")
    read_directory(tmp_path / "files", "label")
    assert "no domain has a text of 1 of the 3 classes that the labels name: 'cow'" in capsys.readouterr().out


@pytest.mark.parametrize("broken", [b"no image", png(1)["bytes"][:45], None], ids=["text", "cut", "empty"])
def test_unreadable_images_are_named(broken, tmp_path):
    if broken is not None:
        root = write_folders(tmp_path / "folders")
        (root / "sketch" / "cat" / "06.png").write_bytes(broken)
        with pytest.raises(UserError, match=r"sketch/cat/06\.png cannot be read as an image"):
            as_arrays(read_directory(root, "label"))
    rows = [{"image": png(v), "label": c, "domain": d} for d, c, v in samples()]
    rows[7]["image"] = broken and {"bytes": broken, "path": None}
    Dataset.from_list(rows).to_parquet(tmp_path / "all.parquet")
    with pytest.raises(UserError, match="row 1 of the domain 'sketch' cannot be read as an image"):
        as_arrays(read_table("domain", "label", data_file=str(tmp_path / "all.parquet")))
    with pytest.raises(UserError, match=r"row 7 of .*all\.parquet cannot be read as an image"):
        grey_images(str(tmp_path / "all.parquet"))


def test_images_of_16_bits_and_filenames(tmp_path):
    deep = Image.fromarray(np.full((6, 6), 128 * 256, np.uint16))
    for number, (domain, name, _) in enumerate(samples()):
        (tmp_path / domain / name).mkdir(parents=True, exist_ok=True)
        deep.save(tmp_path / domain / name / f"{number:02}.png")
    assert as_arrays(read_directory(tmp_path, "label"))["photo"][0] == (128, "cat")
    rows = [
        {"image": str(tmp_path / d / c / f"{n:02}.png"), "label": c, "domain": d}
        for n, (d, c, _) in enumerate(samples())
    ]
    Dataset.from_list(rows).to_csv(tmp_path / "files.csv")
    data = read_table("domain", "label", data_file=str(tmp_path / "files.csv"))
    assert as_arrays(data)["sketch"][0] == (128, "cat")


def test_grey_images_of_a_file(tmp_path):
    rows = [{"image": png(20 * n), "label": "ab"[n % 2]} for n in range(10)]
    Dataset.from_list(rows).to_parquet(tmp_path / "grey.parquet")
    images, labels = grey_images(str(tmp_path / "grey.parquet"))
    assert images.shape == (10, 28, 28) and sorted(images[:, 0, 0]) == list(range(0, 200, 20))
    assert (labels == images[:, 0, 0] // 20 % 2).all()


def test_single_and_missing_domains(tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=r"neither folders.*nor files"):
        read_directory(tmp_path / "empty", "label")
    Dataset.from_dict({"text": ["a", "b"] * 5, "label": [0, 1] * 5, "domain": ["x"] * 10}).to_csv(
        tmp_path / "one.csv"
    )
    with pytest.raises(UserError, match="found 1 domain"):
        read_table("domain", "label", data_file=str(tmp_path / "one.csv"))
    with pytest.raises(UserError, match=r"lacks the column.*'region'"):
        read_table("region", "label", data_file=str(tmp_path / "one.csv"))


def test_digits():
    images, labels = grey_images()
    assert images.shape == (1797, 28, 28) and images.dtype == np.uint8 and images.max() == 255
    data = rotated_digits(images, labels)
    assert data.names == [str(a) for a in ANGLES] and sum(len(e.labels) for e in data.environments) == 1797
    upright, turned = data.environments[0], data.environments[-1]
    assert np.array_equal(upright.inputs[3][..., 0], images[18]) and upright.labels[3] == labels[18]
    back = np.asarray(
        Image.fromarray(turned.inputs[0][..., 0]).rotate(-75, Image.Resampling.BILINEAR)
    ).astype(float)
    assert np.corrcoef(back.ravel(), images[5].ravel())[0, 1] > 0.9


def test_colour_tells_the_label_as_often_as_it_says():
    data = coloured_digits(*grey_images())
    agreement = {}
    for e in data.environments:
        red = e.inputs[..., 0].max(axis=(1, 2)) > 0
        green = e.inputs[..., 1].max(axis=(1, 2)) > 0
        assert (red ^ green).all() and e.inputs[..., 2].max() == 0
        agreement[e.name] = (red == e.labels).mean()
    assert agreement == pytest.approx({"plus_90": 0.9, "plus_80": 0.8, "minus_90": 0.1}, abs=0.04)


def test_augmentation_depends_on_the_seed_alone():
    random = np.random.RandomState(0)
    noise = random.randint(0, 255, (1, 20, 20, 3)).astype(np.uint8)
    view = ImageView(Environment("a", noise, np.array([0])), 16, (0.5,) * 3, (0.5,) * 3)
    one, same, other = (view.sample(0, seed)["pixel_values"] for seed in (1, 1, 2))
    assert one.equal(same) and not one.equal(other) and one.shape == (3, 16, 16)
    plain = view.sample(0, None)["pixel_values"]
    assert plain.equal(view.sample(0, None)["pixel_values"]) and plain.min() >= -1 and plain.max() <= 1


def test_texts_are_never_longer_than_the_model_takes(tiny_model_dir):
    tokenizer = AutoTokenizer.from_pretrained(tiny_model_dir)
    view = TextView(Environment("x", ["good " * 900], np.array([0])), tokenizer, 600)
    assert len(view.sample(0, None)["input_ids"]) == tokenizer.model_max_length < 600
