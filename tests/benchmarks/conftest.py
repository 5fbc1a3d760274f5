"""What tests that run studies share."""

from pathlib import Path

import pytest
from studies import STUDY, write

from benchmarks.study import __main__ as study


@pytest.fixture
def in_the_checkout(monkeypatch):
    monkeypatch.chdir(Path(__file__).resolve().parents[2])


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A study that one process finished: its file and its directory."""
    folder = tmp_path_factory.mktemp("whole")
    file = write(STUDY, folder)
    study.main([file, "--output_dir", str(folder / "out")])
    return file, folder / "out"
