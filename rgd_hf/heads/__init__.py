"""Heads: the unreduced loss of each kind of model, and the items that have one.

A head computes two things for a batch: from the labels alone, which items (samples, or tokens of samples) have a
loss; and from the model's outputs, the loss of each of them. The first gives the number of items of a whole
optimizer step before any forward pass.
"""

from rgd_hf.heads.base import Head, Inputs, logits_of, without_peft
from rgd_hf.heads.fused import FusedHead
from rgd_hf.heads.table import EXCLUDED, HEADS, OWN_HEADS, find_head, needs_labels, why_unknown
from rgd_hf.heads.verification import VERIFIED_CLASSES, hooks_on_outputs, verify, why_unverified

__all__ = [
    "EXCLUDED",
    "HEADS",
    "OWN_HEADS",
    "VERIFIED_CLASSES",
    "FusedHead",
    "Head",
    "Inputs",
    "find_head",
    "hooks_on_outputs",
    "logits_of",
    "needs_labels",
    "verify",
    "why_unknown",
    "why_unverified",
    "without_peft",
]
