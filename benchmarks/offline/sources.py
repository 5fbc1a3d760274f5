"""Names of a study's options that stand for what comes with packages: `embedded:minilm`, `embedded:sentences`."""

import os
from collections.abc import Mapping
from typing import Any

from rgd_hf.scripts.text.embedded import minilm_directory
from rgd_hf.scripts.text.vader import CACHE_DIR, load_vader


def resolve(options: Mapping[str, Any]) -> dict[str, Any]:
    """`options` with the paths of what comes with packages: `embedded:minilm` (a model), `embedded:sentences` (data).

    Raises:
        UserError: a package is not installed, or the sentences cannot be fetched.
    """
    places = {"embedded:minilm": minilm_directory, "embedded:sentences": _sentences_directory}
    return {
        name: places[value]() if isinstance(value, str) and value in places else value
        for name, value in options.items()
    }


def _sentences_directory() -> str:
    """The sentences of `load_vader` as parquet files, written once."""
    if not all((CACHE_DIR / f"{split}.parquet").is_file() for split in ("train", "validation")):
        for split, rows in load_vader().items():
            partial = CACHE_DIR / f"{split}.{os.getpid()}.partial"
            rows.to_parquet(partial)
            os.replace(partial, CACHE_DIR / f"{split}.parquet")
    return str(CACHE_DIR)
