"""Plots of a study as SVG; needs matplotlib (pip install 'anole[bench]')."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from anole_shared.errors import ConfigurationError

Points = Sequence[tuple[float, float]]
_COLOURS = {
    "slora": "#b0b0b0", "slora-1": "#808080", "chameleon-cache-10": "#8fbf6a",
    "chameleon": "#2a7f3f", "chameleon-10": "#7fb98c", "anole": "#c0392b", "bound": "#000000",
}  # fmt: skip


def draw(path: Path, panels: Mapping[str, Mapping[str, Points]], *, y: str, slo: float) -> None:
    """One panel a title, one line a system: y over requests a second, and the SLO.

    Raises:
        ConfigurationError: matplotlib is not installed.
    """
    try:
        import matplotlib as mpl
        from matplotlib.figure import Figure
    except ImportError as fault:
        raise ConfigurationError(
            "plots need matplotlib: pip install 'anole[bench]', or leave --plot out"
        ) from fault
    style: dict[Any, Any] = {
        "svg.hashsalt": "anole",
        "svg.fonttype": "none",
        "font.size": 9,
        "axes.spines.top": False,
        "axes.spines.right": False,
    }
    with mpl.rc_context(style):
        figure = Figure(figsize=(4 * len(panels), 3.2))
        axes: Any = figure.subplots(1, len(panels), squeeze=False)[0]
        for ax, (title, lines) in zip(axes, panels.items(), strict=True):
            for name, points in lines.items():
                xs, ys = zip(*points, strict=True)
                ax.plot(xs, ys, marker="o", markersize=3, label=name, color=_COLOURS.get(name))
            ax.axhline(slo, color="black", linewidth=0.7, linestyle=":")
            ax.set_title(title, loc="left", fontsize=9)
            ax.set_xlabel("requests/s")
            ax.set_yscale("log")
        axes[0].set_ylabel(y)
        axes[-1].legend(frameon=False, fontsize=8)
        figure.tight_layout()
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, metadata={"Date": None}, bbox_inches="tight")
