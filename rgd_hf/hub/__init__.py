"""The model on the Hub: its card, what is pushed, and what is said when that fails."""

from rgd_hf.hub.errors import HubError

__all__ = ["HubError"]
