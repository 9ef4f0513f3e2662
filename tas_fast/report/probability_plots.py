"""The probabilities of widths and depths while the search makes up its mind."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from tas_fast.report import drawing
from tas_fast.report.drawing import HALF, LINES, SERIES, WIDE
from tas_fast.report.layers import layer_stages
from tas_fast.report.rows import MAX_POINTS, Rows, epochs_of, rows_with, thinned


def plot_width_probabilities(rows: Rows, model: str) -> Any | None:
    """Heat maps layers x widths at up to four moments of the search; dots mark the widths chosen by argmax."""
    rows = rows_with(rows, "search", "width_probs")
    if not rows:
        return None
    moments = thinned(rows, 4)
    epochs = dict(zip(map(id, rows), epochs_of(rows), strict=True))
    maps = [_columns(row["width_probs"]) for row in moments]
    stages = layer_stages(model, maps[0].shape[1])
    figure = drawing.new_figure("Probabilities of the widths", WIDE, 0.75 + 1.25 * len(moments))
    panels = figure.subplots(len(moments), 1, sharex=True, squeeze=False)[:, 0]
    for axes, row, probabilities in zip(panels, moments, maps, strict=True):
        image = _heat_map(axes, probabilities, np.nanmax(maps))
        best = np.nanargmax(probabilities, axis=0)
        size = min(5.5, 330 / len(best))
        axes.plot(
            np.arange(len(best)),
            best,
            "o",
            color=drawing.WHITE,
            markeredgecolor="black",
            markersize=size,
            markeredgewidth=0.2 * size,
        )
        axes.set_title(_after(epochs[id(row)]))
        axes.set_yticks(*_width_ticks(row["width_choices"], probabilities.shape[0]))
        for place in _borders(stages):
            axes.axvline(place, color=drawing.SURFACE, linewidth=1.6)
    drawing.layer_ticks(panels[-1], np.arange(len(stages)), len(stages))
    panels[-1].set_xlabel("convolution (0 is the stem); gaps separate the stages")
    figure.supylabel("width, % of unpruned", fontsize=9.5, color=drawing.MUTED)
    _color_bar(figure, image, panels)
    return figure


def plot_width_entropy(rows: Rows, model: str) -> Any | None:
    """Entropy of the widths' probabilities over epochs, a line for each stage: 1 is undecided, 0 is decided."""
    rows = thinned(rows_with(rows, "search", "width_probs"))
    if not rows:
        return None
    epochs = epochs_of(rows)
    entropy = np.array([[_entropy(layer) for layer in row["width_probs"]] for row in rows])  # [rows, L]
    stages = np.array(layer_stages(model, entropy.shape[1]))
    figure = drawing.new_figure("How undecided the widths are", HALF, 3.5)
    axes = figure.subplots()
    marker = "o" if len(rows) < 3 else None
    for i, stage in enumerate(sorted(set(stages))):
        mean = entropy[:, stages == stage].mean(axis=1)
        name = f"stage {stage}" if stage else "stem"
        axes.plot(epochs, mean, color=SERIES[i % 5], linestyle=LINES[i % 5], marker=marker, label=name)
    axes.set(xlabel="epochs", ylabel="entropy / entropy of equal odds", xlim=(0, 1.02 * epochs[-1]))
    axes.set_ylim(min(0.9, 0.95 * entropy.min()), 1.01)
    drawing.epoch_axis(axes.xaxis)
    axes.grid(axis="y")
    drawing.legend_above(axes, columns=5)
    return figure


def plot_depth_probabilities(rows: Rows) -> Any | None:
    """Heat maps epochs x depths, one for each stage; the white line is the most probable depth."""
    rows = thinned(rows_with(rows, "search", "depth_probs"))
    if not rows:
        return None
    epochs, choices = epochs_of(rows), rows[-1]["depth_choices"]
    maps = [np.array([row["depth_probs"][stage] for row in rows]).T for stage in range(len(choices))]
    figure = drawing.new_figure("Probabilities of the depths", HALF, 3.5)
    panels = figure.subplots(len(maps), 1, sharex=True, squeeze=False)[:, 0]
    edges = np.concatenate([[0], epochs])
    for number, (axes, probabilities, depths) in enumerate(zip(panels, maps, choices, strict=True), 1):
        image = _heat_map(axes, _resampled(probabilities, edges), max(map(np.max, maps)), (0, epochs[-1]))
        best = probabilities.argmax(axis=0)
        axes.stairs(best, edges, baseline=None, color="black", linewidth=3)
        axes.stairs(best, edges, baseline=None, color=drawing.WHITE, linewidth=1.6)
        ticks = np.arange(0, len(depths), math.ceil(len(depths) / (5 if len(maps) < 4 else 3)))
        axes.set_yticks(ticks, [str(depths[i]) for i in ticks])
        axes.set_title(f"stage {number}")
    drawing.epoch_axis(panels[-1].xaxis)
    panels[-1].set_xlabel("epochs")
    figure.supylabel("blocks kept", fontsize=9.5, color=drawing.MUTED)
    _color_bar(figure, image, panels)
    return figure


def _with(rows: Rows, name: str) -> Rows:
    return [row for row in rows if row["phase"] == "search" and row.get(name)]


def _columns(probabilities: list[list[float]]) -> np.ndarray:
    """Return [widths, L]; layers with fewer widths than others end in NaN."""
    table = np.full((max(map(len, probabilities)), len(probabilities)), np.nan)
    for layer, values in enumerate(probabilities):
        table[: len(values), layer] = values
    return table


def _resampled(probabilities: np.ndarray, edges: np.ndarray) -> np.ndarray:
    """Return columns of equal width for rows that cover different times (an epoch logged twice counts half each)."""
    centers = (np.arange(MAX_POINTS) + 0.5) / MAX_POINTS * edges[-1]
    return probabilities[:, np.searchsorted(edges[1:], centers)]


def _heat_map(axes: Any, values: np.ndarray, top: float, span: tuple[float, float] | None = None) -> Any:
    left, right = span or (-0.5, values.shape[1] - 0.5)
    axes.spines[:].set_visible(False)
    axes.tick_params(length=0)
    # "none" embeds the values pixel by pixel, where the default would draw a picture of a fixed resolution.
    options = {
        "aspect": "auto",
        "origin": "lower",
        "interpolation": "none",
        "cmap": drawing.HEAT,
        "vmin": 0,
        "vmax": top,
    }
    return axes.imshow(values, extent=(left, right, -0.5, values.shape[0] - 0.5), **options)


def _color_bar(figure: Any, image: Any, panels: Any) -> None:
    bar = figure.colorbar(image, ax=list(panels), label="probability", aspect=30, pad=0.015, fraction=0.03)
    bar.outline.set_visible(False)
    bar.ax.tick_params(length=0)


def _width_ticks(choices: list[list[int]], count: int) -> tuple[list[int], list[str]]:
    """Return places and labels, in percent of the full width, of every other width, the widest included."""
    places = list(range(count - 1, -1, -2))[::-1]
    return places, [f"{_percentage([(row[i], row[-1]) for row in choices if i < len(row)]):.0f}" for i in places]


def _percentage(widths: list[tuple[int, int]]) -> float:
    """Return the roundest share of which all (width, full width) are the truncated products."""
    low = max(100 * width / full for width, full in widths)
    high = min(100 * (width + 1) / full for width, full in widths)
    for step in (10, 5, 1):
        candidate = math.ceil(round(low / step, 6)) * step
        if candidate < high:
            return candidate
    return low


def _borders(stages: tuple[int, ...]) -> list[float]:
    return [i - 0.5 for i in range(1, len(stages)) if stages[i] != stages[i - 1]]


def _entropy(probabilities: list[float]) -> float:
    if len(probabilities) < 2:
        return 0.0
    return -sum(p * math.log(p) for p in probabilities if p > 0) / math.log(len(probabilities))


def _after(epochs: float) -> str:
    return f"after {epochs:.4g} epoch{'' if epochs == 1 else 's'}"
