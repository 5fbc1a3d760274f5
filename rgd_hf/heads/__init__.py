"""Heads: the unreduced loss of each kind of model, and the items that have one.

A head computes two things for a batch: from the labels alone, which items (samples, or tokens of samples) have a
loss; and from the model's outputs, the loss of each of them. The first gives the number of items of a whole
optimizer step before any forward pass.
"""

from rgd_hf.heads.base import Head, Inputs, bare_model, logits_of
from rgd_hf.heads.fused import FusedHead
from rgd_hf.heads.table import EXCLUDED, HEADS, OWN_HEADS, find_head, why_unknown
from rgd_hf.heads.verification import READ, doubt, hooks_on_outputs, verify

__all__ = [
    "EXCLUDED",
    "HEADS",
    "OWN_HEADS",
    "READ",
    "FusedHead",
    "Head",
    "Inputs",
    "bare_model",
    "doubt",
    "find_head",
    "hooks_on_outputs",
    "logits_of",
    "verify",
    "why_unknown",
]
