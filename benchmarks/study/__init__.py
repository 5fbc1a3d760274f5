"""Comparing methods over data sets and seeds: the study, its runs, and what they say."""

import sys
from pathlib import Path

# The recipes are scripts, not a package: a study calls them from the folder that they lie in.
sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "recipes"))
