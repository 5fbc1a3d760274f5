"""The lines of finished runs, shards, and how times are written."""

import pytest

from benchmarks.run_file import RunFile, duration, parse_shard
from rgd_hf.scripts.errors import UserError


def test_a_run_file_survives_half_a_line(tmp_path):
    file = RunFile(tmp_path)
    file.append({"name": "one", "value": 1})
    with file.path.open("a") as handle:
        handle.write('{"name": "two", "va')
    assert set(file.read()) == {"one"}
    file.append({"name": "three"})
    assert set(file.read()) == {"one", "three"} and file.read()["one"]["value"] == 1


def test_durations():
    shown = [duration(s) for s in (4.2, 89, 91, 3600, 11100)]
    assert shown == ["4 s", "89 s", "2 min", "60 min", "3 h 05 min"]


@pytest.mark.parametrize("text", ["0/2", "3/2", "1", "a/b", "1/0", "-1/2"])
def test_shards_that_are_none(text):
    with pytest.raises(UserError, match="--shard must be i/n"):
        parse_shard(text)
    assert parse_shard("2/3") == (2, 3)
