"""Draw the pictures of the documentation that are made from the library: `python benchmarks/figures.py`."""

from pathlib import Path

import matplotlib.pyplot as plt
import torch

from rgd_hf import rgd_weights

IMAGES = Path(__file__).resolve().parents[1] / "docs" / "images"


def weight_curves() -> None:
    """The weight of a loss under each divergence, for two clipping thresholds."""
    losses = torch.linspace(0, 8, 401)
    figure, axes = plt.subplots(1, 2, figsize=(9, 3.2), sharey=True, layout="constrained")
    for axis, tau in zip(axes, (1.0, 5.0)):
        for divergence in ("reverse_kl", "kl", "chi2", "none"):
            color = "0.6" if divergence == "none" else None
            axis.plot(losses, rgd_weights(losses, divergence, tau), label=divergence, color=color)
        axis.axvline(tau, color="0.6", linewidth=0.8, linestyle=":")
        axis.set(title=f"tau = {tau:g}", xlabel="loss of the sample or token", yscale="log")
        axis.set_yticks([1, 2, 4, 6], ["1", "2", "4", "6"], minor=False)
        axis.minorticks_off()
        axis.spines[["top", "right"]].set_visible(False)
    axes[0].set_ylabel("weight")
    axes[1].legend(frameon=False)
    figure.savefig(IMAGES / "weight_curves.svg", metadata={"Date": None})
    plt.close(figure)


if __name__ == "__main__":
    plt.rcParams["svg.hashsalt"] = "rgd-hf"
    weight_curves()
