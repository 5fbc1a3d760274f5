"""`tools/environment.py`: whatever interrupted it, the next call leaves a whole environment behind, or says why not."""

import shutil
import subprocess
import sys
import zipfile
from pathlib import Path
from types import SimpleNamespace

import pytest

from tools import environment

SCRIPT = environment.__file__


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """A package of two modules that installs without a network."""
    path = tmp_path_factory.mktemp("wheel") / "tiny_thing-1.0-py3-none-any.whl"
    info = "tiny_thing-1.0.dist-info"
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("tiny_thing.py", "answer = 42\n")
        file.writestr("tiny_other.py", "")
        file.writestr(f"{info}/METADATA", "Metadata-Version: 2.1\nName: tiny-thing\nVersion: 1.0\n")
        file.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        file.writestr(f"{info}/RECORD", "")
    return path


@pytest.fixture(scope="module")
def made(tmp_path_factory, wheel):
    folder = tmp_path_factory.mktemp("made") / "venv"
    done = install(folder, wheel)
    assert done.returncode == 0, done.stdout
    return folder


@pytest.fixture
def venv(made, tmp_path):
    """A copy to break, without what venv's own interpreter needs no copy of."""
    return Path(shutil.copytree(made, tmp_path / "venv", symlinks=True))


def install(folder, *arguments, **variables):
    """As the Makefile calls it."""
    command = [sys.executable, SCRIPT, str(folder), "--no-index", *map(str, arguments)]
    return subprocess.run(
        command,
        env={"PATH": "/usr/bin:/bin", "ROOM_GB": "0.01"} | variables,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )


def site_packages(folder):
    return next(Path(folder).glob("lib/python*/site-packages"))


def works(folder):
    python = environment.python_of(str(folder))
    done = subprocess.run([python, "-c", "import tiny_thing, tiny_other"], check=False, capture_output=True)
    return done.returncode == 0 and not (Path(folder) / environment.INSTALLING).exists()


def test_what_is_whole_is_left_alone(venv, wheel):
    (venv / "note").touch()
    done = install(venv, wheel)
    assert done.returncode == 0 and works(venv) and (venv / "note").exists()


def killed_before_pip_was_there(venv):
    shutil.rmtree(site_packages(venv) / "pip")


def killed_while_a_package_was_copied(venv):
    (venv / environment.INSTALLING).touch()
    (site_packages(venv) / "tiny_other.py").unlink()


def killed_before_the_list_of_files(venv):
    (venv / environment.INSTALLING).touch()
    (site_packages(venv) / "tiny_thing-1.0.dist-info" / "RECORD").unlink()


def python_is_gone(venv):
    python = Path(environment.python_of(str(venv)))
    python.unlink()
    python.symlink_to("/nowhere/python3")


def only_the_marker_is_there(venv):
    shutil.rmtree(venv)
    venv.mkdir()
    (venv / environment.INSTALLING).touch()


@pytest.mark.parametrize(
    "happened",
    [
        killed_before_pip_was_there,
        killed_while_a_package_was_copied,
        killed_before_the_list_of_files,
        python_is_gone,
        only_the_marker_is_there,
    ],
    ids=lambda function: function.__name__,
)
def test_half_an_environment_is_cleared_away(happened, venv, capsys):
    happened(venv)
    environment.clear_away(str(venv))
    assert "is not whole" in capsys.readouterr().out and not venv.exists()


def test_and_made_anew(venv, wheel):
    killed_while_a_package_was_copied(venv)
    done = install(venv, wheel)
    assert done.returncode == 0 and "lacks tiny_other.py" in done.stdout, done.stdout
    assert works(venv)


def test_after_a_failed_download_the_next_call_goes_on(venv, wheel):
    (venv / "note").touch()
    failed = install(venv, "no-such-package")
    assert failed.returncode != 0 and "the same make goes on" in failed.stdout
    done = install(venv, wheel)
    assert done.returncode == 0 and works(venv) and (venv / "note").exists()


def test_a_folder_of_something_else_is_not_touched(tmp_path):
    (tmp_path / "thesis.tex").write_text("mine")
    done = install(tmp_path)
    assert done.returncode != 0 and "no virtual environment" in done.stdout
    assert (tmp_path / "thesis.tex").read_text() == "mine"


def test_no_room_is_said_before_anything_is_made(tmp_path):
    done = install(tmp_path / "venv", "torch", ROOM_GB="1e9")
    assert done.returncode != 0 and not (tmp_path / "venv").exists()
    assert "No room for torch" in done.stdout and str(tmp_path) in done.stdout
    for remedy in ("make VENV=", "make ROOM_GB="):
        assert remedy in done.stdout


def test_no_room_in_the_temporary_folder(tmp_path, monkeypatch):
    room = {str(tmp_path): 100e9}
    monkeypatch.setattr(
        environment.shutil, "disk_usage", lambda path: SimpleNamespace(free=room.get(str(path), 1e9))
    )
    with pytest.raises(SystemExit, match="TMPDIR="):
        environment.stop_without_room(str(tmp_path / "venv"))


def test_a_python_that_is_too_old_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(environment, "NEEDED", (99, 0))
    with pytest.raises(
        SystemExit, match=r"Python 99\.0 or later is needed, and this is 3\.\d+.*make PYTHON="
    ):
        environment.main(str(tmp_path / "venv"), "torch")
    assert not (tmp_path / "venv").exists()
