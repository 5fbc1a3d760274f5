"""What all plots of a report share: size of letters, colours, and PNG files that come out the same every time."""

import io
from collections.abc import Sequence

import matplotlib
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image

from benchmarks.report.formats import verdict
from rgd_hf.comparison.statistics import Estimate

# Of Okabe and Ito: told apart by colour-blind readers; marks and dashes tell them apart in grey too.
COLOURS = ("#000000", "#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#e69f00")
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
DASHES = ("-", "-", "--", "-.", ":", "--", "-.")
VERDICT_COLOURS = {"gain": "#0072b2", "loss": "#d55e00", "tie": "#767676", None: "#767676"}
VERDICT_MARKERS = {"gain": "^", "loss": "v", "tie": "o", None: "x"}
DPI = 110
PALETTE = 256


def new_figure(width: float, height: float) -> Figure:
    """An empty figure of so many inches, with letters that stay legible in a page 900 pixels wide."""
    with matplotlib.rc_context({"font.family": "DejaVu Sans"}):
        return Figure(figsize=(width, height), dpi=DPI, layout="constrained")


def png(figure: Figure) -> bytes:
    """The figure as PNG of at most 256 colours, which is a third of the size; no date, version or name is in it."""
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    image = Image.frombytes("RGBA", canvas.get_width_height(), bytes(canvas.buffer_rgba())).convert("RGB")
    buffer = io.BytesIO()
    image.quantize(PALETTE).save(buffer, format="PNG", optimize=True)
    return buffer.getvalue()


def tidy(axis: Axes, grid: str = "both") -> None:
    """A light grid, and no frame above and to the right."""
    axis.grid(alpha=0.3, axis=grid)  # type: ignore[arg-type]
    axis.spines[["top", "right"]].set_visible(False)
    axis.tick_params(labelsize=9)


def forest(axis: Axes, estimates: Sequence[Estimate]) -> None:
    """One line per estimate, the first at the top: its mean and 95 % interval around a line at 0.

    Blue triangles upward are gains, orange ones downward losses, grey circles ties; a cross has no interval.
    """
    axis.axvline(0, color="black", linewidth=1)
    for place, found in enumerate(estimates):
        colour = VERDICT_COLOURS[verdict(found)]
        if found.low is not None and found.high is not None:
            axis.plot(
                [found.low, found.high], [place, place], color=colour, linewidth=2, solid_capstyle="butt"
            )
        axis.plot(found.mean, place, VERDICT_MARKERS[verdict(found)], color=colour, markersize=6)
    axis.set_ylim(len(estimates) - 0.5, -0.5)
    tidy(axis, grid="x")
