"""Make a virtual environment whole: `python tools/environment.py .venv -c constraints.txt -e '.[dev]'`.

What stands after the folder goes to `pip install`. An environment is either whole or made anew: one that an
interrupted installation or a replaced Python left behind is recognised, by what it wrote last and by the files that its
packages say they have. Runs on Python 3.6 or later, to say which one is needed.
"""

import os
import shutil
import subprocess
import sys
import tempfile

NEEDED = (3, 10)
INSTALLING = ".installing"
"""In the environment while pip writes into it."""

# Prints the first package that lacks one of its files, by RECORD, their list, which pip writes last. `Distribution.files`
# leaves out those that are missing, from Python 3.12 on.
MISSING_FILES = """
import csv, importlib.metadata as metadata, sys, sysconfig
for found in metadata.distributions(path=[sysconfig.get_path("purelib"), sysconfig.get_path("platlib")]):
    name, record = found.metadata["Name"] if found.metadata else None, found.read_text("RECORD")
    if name is None or record is None or name.startswith("~"):
        sys.exit("a package is half there")
    files = [row[0] for row in csv.reader(record.splitlines()) if row]
    missing = [f for f in files if not f.endswith(".pyc") and not found.locate_file(f).exists()]
    if missing:
        sys.exit("%s lacks %s" % (name, missing[0]))
"""


def python_of(folder):
    """The interpreter of the environment in `folder`."""
    return os.path.join(folder, "Scripts" if os.name == "nt" else "bin", "python")


def run(folder, *arguments):
    """Run the environment's Python; what it printed, and its exit status."""
    command = [python_of(folder), "-I", *arguments]
    try:
        done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, check=False)
    except OSError as error:
        return str(error), 1
    return done.stdout.decode(errors="replace").strip(), done.returncode


def damage(folder):
    """What keeps the environment in `folder` from being whole; None where nothing does."""
    said, status = run(folder, "-c", "import pip")
    if status:
        return said.splitlines()[-1] if said else "its Python does not start"
    if os.path.exists(os.path.join(folder, INSTALLING)):
        said, status = run(folder, "-c", MISSING_FILES)
        if status:
            return "an installation was interrupted: " + said
    return None


def gigabytes_needed(folder):
    """Room that torch and what comes with it take in `folder`, by the machine; 0 where torch is there already."""
    if "ROOM_GB" in os.environ:
        return float(os.environ["ROOM_GB"])
    if run(folder, "-c", "import importlib.metadata; importlib.metadata.version('torch')")[1] == 0:
        return 0.0
    # Measured: 6.8 GB on Linux with CUDA, of which torch and its libraries are 5.6; 1.9 GB with a CPU build.
    return 8.0 if sys.platform == "linux" else 3.0


def stop_without_room(folder):
    """End with what is missing and how to go on, before the first gigabyte is downloaded."""
    needed = gigabytes_needed(folder)
    disk = os.path.dirname(os.path.abspath(folder))
    free = shutil.disk_usage(disk).free / 1e9
    if free < needed:
        sys.exit(
            f"No room for torch: it and what comes with it take about {needed:.0f} GB, and {free:.1f} GB are free in "
            f"{disk}. Make room there; or put the environment on another disk (make VENV=/path/to/folder ...); or, "
            "where a smaller build of torch will be taken, say how many gigabytes are enough (make ROOM_GB=3 ...)."
        )
    unpacked = tempfile.gettempdir()
    free = shutil.disk_usage(unpacked).free / 1e9
    if free < needed / 2:
        sys.exit(
            f"No room to download torch: about {needed / 2:.0f} GB pass through the temporary folder {unpacked}, where "
            f"{free:.1f} GB are free. Make room there, or name another folder (TMPDIR=/path/to/folder make ...)."
        )


def clear_away(folder):
    """Remove an environment that is not whole."""
    if not os.path.isdir(folder) or not os.listdir(folder):
        return
    if not {"pyvenv.cfg", INSTALLING} & set(os.listdir(folder)):
        sys.exit(f"{folder} has files in it and is no virtual environment: name another one (make VENV=...).")
    why = damage(folder)
    if why is not None:
        print(f"{folder} is not whole ({why}): it is made anew.", flush=True)
        shutil.rmtree(folder)


def make_venv(folder):
    """A new environment with pip in it."""
    os.makedirs(folder, exist_ok=True)
    open(os.path.join(folder, INSTALLING), "w").close()
    status = subprocess.run([sys.executable, "-m", "venv", folder], check=False).returncode
    if status:
        shutil.rmtree(folder)
        sys.exit(
            f"{sys.executable} -m venv failed, see above (on Debian and Ubuntu: apt install python3-venv)."
        )


def pip_install(folder, arguments):
    """Run pip; the marker stays where it was interrupted or failed, and the next call looks at every file."""
    marker = os.path.join(folder, INSTALLING)
    open(marker, "w").close()
    command = [python_of(folder), "-m", "pip", "--disable-pip-version-check", "install", *arguments]
    status = subprocess.run(command, check=False).returncode
    if status:
        sys.exit(
            "pip could not install everything, see above. What it has downloaded is kept: the same make goes on."
        )
    os.remove(marker)


def main(folder, *arguments):
    """See the module."""
    if sys.version_info < NEEDED:
        sys.exit(
            "Python {}.{} or later is needed, and this is {}: make PYTHON=/path/to/python ...".format(
                *NEEDED, sys.version.split()[0]
            )
        )
    clear_away(folder)
    stop_without_room(folder)
    if not os.path.exists(python_of(folder)):
        make_venv(folder)
    pip_install(folder, list(arguments))


if __name__ == "__main__":
    main(*sys.argv[1:])
