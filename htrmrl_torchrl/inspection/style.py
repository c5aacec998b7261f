"""Style of all inspection figures."""

from collections.abc import Callable
from functools import wraps
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar

import numpy as np

from htrmrl_torchrl.extras import require

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

P = ParamSpec("P")
R = TypeVar("R")
# Colour-blind safe (Okabe and Ito 2008), completed for ten tasks.
COLORS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#D55E00", "#56B4E9", "#F0E442", "#000000", "#999999", "#6A3D9A")
SUCCESS = "#009E73"
MAP = "viridis"
_SETTINGS: Any = {  # matplotlib's own type is a list of all settings there are
    "font.size": 8.5,
    "axes.titlesize": 9,
    "legend.fontsize": 8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "pdf.fonttype": 42,  # text that stays text
}


def styled(draw: Callable[P, R]) -> Callable[P, R]:
    """Decorator: draws a figure in these settings, without changing the global ones."""

    @wraps(draw)
    def drawn(*args: P.args, **kwargs: P.kwargs) -> R:
        require("plots", "matplotlib")
        import matplotlib

        with matplotlib.rc_context(_SETTINGS):
            return draw(*args, **kwargs)

    return drawn


def grid(rows: int, columns: int, *, width: float, height: float) -> tuple["Figure", list[list["Axes"]]]:
    """A figure with ``rows x columns`` axes, each about ``width x height`` inches."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width * columns + 0.8, height * rows + 0.5), layout="constrained")
    return figure, [list(row) for row in figure.subplots(rows, columns, squeeze=False)]


def color(index: int) -> str:
    """Color of the index-th item."""
    return COLORS[index % len(COLORS)]


def scale(name: str, low: float, high: float) -> Any:
    """Colours for numbers from ``low`` to ``high``."""
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import Normalize

    return ScalarMappable(Normalize(low, high), name)


def few(count: int) -> list[int]:
    """At most five of 1 .. ``count``, evenly spaced."""
    return sorted({round(x) for x in np.linspace(1, count, min(count, 5))})


def whole_numbers(axes: "Axes") -> None:
    """Ticks on the x axis at whole numbers only."""
    from matplotlib.ticker import MaxNLocator

    axes.xaxis.set_major_locator(MaxNLocator(integer=True))


def episode_axis(axes: "Axes") -> None:
    """The x axis counts the trial's episodes."""
    axes.set_xlabel("episode of the trial")
    whole_numbers(axes)


def legend(figure: "Figure", axes: "Axes") -> None:
    """Legend above all axes, without overlap."""
    handles, labels = axes.get_legend_handles_labels()
    if handles:
        figure.legend(handles, labels, loc="outside upper center", ncols=4, frameon=False)
