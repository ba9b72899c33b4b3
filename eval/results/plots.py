"""The plots of the report, as SVG elements for the page.

Text stays text and colors are the page's CSS variables, so that one SVG works in light mode, dark
mode and print. pyplot is not used, which avoids its global state and its choice of a backend.
"""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from markupsafe import Markup, escape

from eval.results.calibration import Coverage, Reliability
from eval.results.drawing import Axes, Figure, matplotlib

SIZE = (4.4, 3.3)  # inches; the page scales it

# Placeholder colors, replaced by CSS variables. Not black: matplotlib omits its default color.
_TEXT, _MUTED, _LINE, _FIRST, _SECOND = (f"#00000{i}" for i in range(1, 6))
_VARIABLES = {
    _TEXT: "var(--text)",
    _MUTED: "var(--muted)",
    _LINE: "var(--line)",
    _FIRST: "var(--first)",
    _SECOND: "var(--second)",
}
_SHORTER = re.compile(r"(\d\.\d\d)\d+")
_STYLE: dict[str, object] = {
    "svg.fonttype": "none",
    "text.parse_math": False,  # names come from outside and may contain dollar signs
    "text.color": _TEXT,
    "axes.labelcolor": _MUTED,
    "axes.edgecolor": _LINE,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "grid.color": _LINE,
    "grid.linewidth": 0.6,
    "xtick.color": _LINE,
    "ytick.color": _LINE,
    "xtick.labelcolor": _MUTED,
    "ytick.labelcolor": _MUTED,
    "font.size": 9.0,
    "legend.frameon": False,
}


@dataclass(frozen=True)
class Accuracy:
    """One row of `accuracy_plot`, in percent.

    Attributes:
        name: the label of the row.
        value: the accuracy.
        interval: its 95 % confidence interval; None for third-party results.
    """

    name: str
    value: float
    interval: tuple[float, float] | None = None


def accuracy_plot(rows: Sequence[Accuracy], reported: float | None) -> Markup:
    """Plot top-1 accuracies with their confidence intervals, and the reference as a line."""
    title = "Top-1 accuracy: " + ", ".join(f"{row.name} {row.value:.3f} %" for row in rows)
    if reported is not None:
        title += f", reported {reported} %"

    def draw(figure: Figure) -> None:
        axes = figure.add_subplot()
        if reported is not None:
            axes.axvline(reported, color=_SECOND, linestyle="--", linewidth=1.2)
        for place, row in enumerate(rows):
            color = _MUTED if row.interval is None else _FIRST
            if row.interval:
                axes.plot(row.interval, (place, place), color=color, linewidth=3, alpha=0.35)
            axes.plot(row.value, place, "o", color=color, markersize=6)
        axes.set_yticks(range(len(rows)), [row.name for row in rows])
        axes.tick_params(axis="y", length=0, labelcolor=_TEXT)
        axes.set_ylim(len(rows) - 0.4, -0.6)
        axes.set_xlabel("top-1 accuracy, %")
        axes.xaxis.set_major_locator(
            matplotlib.ticker.MaxNLocator(nbins=5, steps=[1, 2, 2.5, 5, 10])
        )
        axes.margins(x=0.08)
        axes.ticklabel_format(axis="x", useOffset=False)
        axes.grid(axis="x")
        axes.spines["left"].set_visible(False)

    size = (SIZE[0] * 1.2, 0.7 + 0.28 * len(rows))
    return _render("accuracy", title, draw, size)


def reliability_plot(bins: Reliability) -> Markup:
    """Plot accuracy against confidence and, below, the number of images in each bin."""
    number = len(bins.count)
    edges = np.arange(number) / number
    title = f"Reliability diagram: expected calibration error {100 * bins.ece:.2f} points"

    def draw(figure: Figure) -> None:
        upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1))
        style = {"width": 0.9 / number, "align": "edge"}
        left = edges + 0.05 / number
        upper.bar(left, 100 * np.nan_to_num(bins.accuracy), color=_FIRST, **style)
        for x, confidence, accuracy in zip(left, bins.confidence, bins.accuracy, strict=True):
            if np.isfinite(confidence):
                ends = (x, x + 0.9 / number)
                upper.plot(ends, [100 * confidence] * 2, color=_SECOND, linewidth=2)
                middle = [sum(ends) / 2] * 2
                upper.plot(middle, [100 * accuracy, 100 * confidence], color=_SECOND, linewidth=0.8)
        upper.plot((0, 1), (0, 100), color=_MUTED, linewidth=1, linestyle="--")
        upper.set(ylim=(0, 100), ylabel="accuracy, %")
        upper.grid(axis="y")
        lower.bar(left, bins.count, color=_MUTED, **style)
        lower.set(xlim=(0, 1), xlabel="top-1 probability (confidence)", ylabel="images")
        _count_axis(lower, "y")

    return _render("reliability", title, draw)


def coverage_plot(curve: Coverage) -> Markup:
    """Plot coverage and accuracy against the confidence threshold."""
    threshold = np.linspace(0, curve.confidence[0], 201)
    coverage, accuracy = curve.from_confidence(threshold)
    title = "Coverage and accuracy of the predictions at or above each confidence"

    def draw(figure: Figure) -> None:
        axes = figure.add_subplot()
        axes.plot(threshold, 100 * accuracy, color=_SECOND, label="accuracy")
        axes.plot(threshold, 100 * coverage, color=_FIRST, label="coverage")
        axes.set(xlabel="confidence threshold", ylabel="%", ylim=(0, 102))
        axes.set_xlim(0, max(np.ceil(10 * curve.confidence[0]), 1) / 10)
        axes.grid()
        figure.legend(loc="outside upper left", ncols=2)

    return _render("coverage", title, draw)


def places_plot(places: Sequence[tuple[str, int]]) -> Markup:
    """Plot how often the label is at each position."""
    total = max(1, sum(count for _, count in places))
    title = "Position of the label: " + ", ".join(f"{name}: {count:,}" for name, count in places)

    def draw(figure: Figure) -> None:
        axes = figure.add_subplot()
        rows = range(len(places))
        bars = axes.barh(rows, [count for _, count in places], color=_FIRST, height=0.72)
        texts = [f"{count:,}  ({100 * count / total:.1f} %)" for _, count in places]
        axes.bar_label(bars, texts, padding=4, fontsize=8)
        axes.set_yticks(rows, [name for name, _ in places])
        axes.set(ylim=(len(places) - 0.5, -0.5), ylabel="position of the label", xlabel="images")
        axes.tick_params(axis="y", length=0)
        axes.margins(x=0.32)
        _count_axis(axes, "x")

    return _render("places", title, draw)


def _count_axis(axes: Axes, axis: str) -> None:
    """Few ticks, at whole numbers, with thousands separators."""
    chosen = axes.xaxis if axis == "x" else axes.yaxis
    chosen.set_major_locator(matplotlib.ticker.MaxNLocator(nbins=3, integer=True))
    chosen.set_major_formatter(matplotlib.ticker.StrMethodFormatter("{x:,.0f}"))


def _render(
    name: str, title: str, draw: Callable[[Figure], None], size: tuple[float, float] = SIZE
) -> Markup:
    """Draw on a new figure and return its SVG.

    Args:
        name: makes the ids in the SVG differ from those of other plots on the page.
        title: text alternative for screen readers.
        draw: draws the plot on a figure.
        size: (width, height) in inches.
    """
    # Start from matplotlib's defaults: a user's matplotlibrc may, for example, require LaTeX.
    with matplotlib.style.context(["default", {**_STYLE, "svg.hashsalt": name}]):
        figure = Figure(figsize=size, layout="constrained")
        draw(figure)
        file = io.StringIO()
        nothing = dict.fromkeys(("Date", "Creator", "Format", "Type"))
        figure.savefig(file, format="svg", transparent=True, metadata=nothing)
    return _for_page(file.getvalue(), title)


def _for_page(svg: str, title: str) -> Markup:
    """Turn an SVG file into an element with the page's fonts and colors and no fixed size."""
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<style.*?</style>", "", svg, flags=re.DOTALL)  # would apply to the whole page
    svg = re.sub(r'<g id="[^"]*">', "<g>", svg)
    svg = re.sub(r"font-family:[^;\"]*;? ?", "", svg)
    svg = re.sub(r' (?:width|height)="[\d.]+pt"', "", svg)
    # Coordinates to a hundredth of a pixel are enough.
    svg = re.sub(r' (?:d|x|y|transform)="[^"]*"', lambda place: _SHORTER.sub(r"\1", place[0]), svg)
    for color, variable in _VARIABLES.items():
        svg = svg.replace(color, variable)
    head = f'<svg role="img" aria-label="{escape(title)}" '
    return Markup(head + svg.removeprefix("<svg "))  # noqa: S704 - matplotlib escapes its texts
