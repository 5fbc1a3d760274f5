"""The demo's sentences: read from the archive whatever it holds, split without overlap, honest words on the result."""

import hashlib
import io
import tarfile

import pytest
from datasets import Dataset, DatasetDict

import demo
from helpers.recipes import sentences
from rgd_hf.scripts.errors import UserError
from rgd_hf.scripts.text import vader


def archive(rows_a_file: int) -> bytes:
    """An archive laid out as the real one, with a member that tries to climb out of its folder."""

    def pack(members: dict[str, bytes]) -> bytes:
        buffer = io.BytesIO()
        with tarfile.open(fileobj=buffer, mode="w:gz") as tar:
            for name, content in members.items():
                info = tarfile.TarInfo(name)
                info.size = len(content)
                tar.addfile(info, io.BytesIO(content))
        return buffer.getvalue()

    inner = {"../../evil.txt": b"x"}
    for domain, name in vader.FILES.items():
        lines = [f"{n}\t{(-1) ** n * (n % 5) / 4}\tsentence {n} of {domain}" for n in range(rows_a_file)]
        inner[name] = "\r\n".join([*lines, "0\t1.0\tsaid everywhere"]).encode()
    return pack({vader.INNER_ARCHIVE: pack(inner), "../evil.txt": b"x"})


@pytest.fixture
def cached(tmp_path, monkeypatch):
    content = archive(50)
    folder = tmp_path / "deep" / "cache"
    folder.mkdir(parents=True)
    (folder / vader.ARCHIVE).write_bytes(content)
    monkeypatch.setattr(vader, "SHA256", hashlib.sha256(content).hexdigest())
    return folder


def test_ratings_become_labels_and_splits_share_no_sentence(cached):
    data = vader.load_vader(cached, validation_fraction=0.25)
    rows = [row for split in data.values() for row in split]
    assert (
        len(rows) == len({row["text"] for row in rows}) == 4 * 40 + 1
    )  # each fifth is neutral, one said four times
    for row in rows:
        if row["text"] != "said everywhere":
            number = int(row["text"].split()[1])
            assert row["label"] == (1 if number % 2 == 0 else 0) and number % 5
            assert row["text"].endswith(vader.DOMAINS[row["domain"]])
    for domain in range(4):
        held_out = [row["label"] for row in data["validation"] if row["domain"] == domain]
        assert len(held_out) in (10, 11) and 4 <= sum(held_out) <= 6, "stratified by domain and label"
    assert data["train"].features["label"].names == ["negative", "positive"]
    assert data["train"].to_dict() == vader.load_vader(cached, validation_fraction=0.25)["train"].to_dict()
    assert (
        data["train"].to_dict()
        != vader.load_vader(cached, validation_fraction=0.25, seed=1)["train"].to_dict()
    )
    assert not list(cached.parents[1].rglob("evil.txt"))


def test_an_unreachable_index_is_explained_and_leaves_no_rubbish(tmp_path, monkeypatch):
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.delenv("PIP_FIND_LINKS", raising=False)
    (tmp_path / vader.ARCHIVE).write_bytes(b"half a download")
    with pytest.raises(
        UserError, match=r"could not be downloaded.*Connect to a network once, or put vaderSentiment"
    ):
        vader.load_vader(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == [vader.ARCHIVE]


def test_the_demo_compares_says_what_one_seed_says_and_uses_the_model(
    tiny_model_dir, tmp_path, monkeypatch, capsys
):
    rows = [{"text": row["text"], "label": row["label"]} for row in sentences(48)]
    data = DatasetDict(train=Dataset.from_list(rows), validation=Dataset.from_list(rows[:24]))
    for name, value in {
        "TRAIN_ROWS": 32,
        "load_vader": lambda: data,
        "minilm_directory": lambda: tiny_model_dir,
    }.items():
        monkeypatch.setattr(demo, name, value)
    options = ["--max_steps", "2", "--use_cpu", "--disable_tqdm", "true", "--output_dir", str(tmp_path)]
    results = demo.main(options)
    assert list(results["runs"]) == ["erm", "kl"]
    shown = capsys.readouterr().out
    assert "from one seed" in shown and demo.EXAMPLES[0] in shown
    assert demo.main(options) == results, "a finished demo is shown again"
