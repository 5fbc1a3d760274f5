"""Losses of a linear head over a vocabulary without its logits: in tiles, by torch or by Triton."""

from rgd_hf.lm_head.losses import chunked_token_losses, linear_token_losses

__all__ = ["chunked_token_losses", "linear_token_losses"]
