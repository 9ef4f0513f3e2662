"""What a run achieved: accuracy over epochs, accuracy against MACs, time of each part."""

from __future__ import annotations

from typing import Any, NamedTuple

from tas_fast.report import drawing
from tas_fast.report.drawing import BLUE, GREEN, HALF, INK, LINES, MUTED, ORANGE, PURPLE, SURFACE, UNPRUNED
from tas_fast.report.rows import Rows, epochs_of, rows_with, thinned
from tas_fast.report.table import format_seconds
from tas_fast.report.values import Report

_PHASES = {
    "teacher": ("unpruned network", GREEN, LINES[2]),
    "search": ("search (sampled networks)", PURPLE, LINES[3]),
    "distill": ("found, distilled", BLUE, LINES[0]),
    "compare": ("found, not distilled", ORANGE, LINES[1]),
}


class _Point(NamedTuple):
    name: str
    macs: int
    accuracy: float
    marker: str
    color: str


def plot_accuracy(rows: Rows) -> Any | None:
    """Accuracy of each phase over its own epochs."""
    phases = {name: thinned(rows_with(rows, name, "accuracy")) for name in _PHASES}
    if not any(phases.values()):
        return None
    figure = drawing.new_figure("Accuracy", HALF, 3.5)
    axes = figure.subplots()
    for name, (label, color, line) in _PHASES.items():
        if phases[name]:
            marker = "o" if len(phases[name]) < 3 else None
            values = [row["accuracy"] for row in phases[name]]
            axes.plot(epochs_of(phases[name]), values, color=color, linestyle=line, marker=marker, label=label)
    axes.set(xlabel="epochs of the phase", ylabel="accuracy, %", xlim=(0, None))
    drawing.epoch_axis(axes.xaxis)
    axes.grid(axis="y")
    drawing.legend_above(axes, columns=2)
    return figure


def plot_tradeoff(report: Report) -> Any | None:
    """Accuracy against MACs: unpruned, found with and without distillation."""
    points = _points(report)
    if not points:
        return None
    accuracies = [point.accuracy for point in points]
    figure = drawing.new_figure("Accuracy against MACs", HALF, 3.5)
    axes = figure.subplots()
    spread = max(max(accuracies) - min(accuracies), 1.0)
    axes.set_ylim(min(accuracies) - 0.3 * spread, max(accuracies) + 0.3 * spread)
    target = report.target["macs"]
    right = 1.12 * max(report.unpruned.macs, target, *(point.macs for point in points))
    axes.set_xlim(0, right)
    axes.axvline(target, color=MUTED, linewidth=1, linestyle=LINES[1])
    box = {"facecolor": SURFACE, "pad": 0.8}  # keeps the labels readable where they cross a line
    style: dict[str, Any] = {"textcoords": "offset points", "fontsize": 9, "bbox": box}
    axes.annotate(
        "target ", (target, 0.03), (0, 0), ha="right", xycoords=("data", "axes fraction"), color=MUTED, **style
    )
    for point, shift in zip(points, _label_shifts(points, 1.6 * spread), strict=True):
        axes.plot(point.macs, point.accuracy, point.marker, color=point.color, markersize=9)
        side = -1 if point.macs > 0.45 * right else 1
        place = {"xytext": (9 * side, shift), "ha": "right" if side < 0 else "left", "va": "center"}
        axes.annotate(
            f"{point.name}: {point.accuracy:.2f} %", (point.macs, point.accuracy), color=INK, **place, **style
        )
    axes.set(xlabel="MACs per image", ylabel="accuracy, %")
    drawing.count_axis(axes.xaxis)
    axes.grid(axis="y")
    return figure


def plot_time(report: Report) -> Any:
    """Bars of the time of each part of the run."""
    seconds = report.seconds
    phases = (("teacher", seconds.teacher), ("search", seconds.search), ("distillation", seconds.distill))
    parts = [(name, value) for name, value in phases if value is not None]
    rest = seconds.total - sum(value for _, value in parts)
    bars = [*parts, ("everything else", max(rest, 0.0))]
    figure = drawing.new_figure(f"Time: {format_seconds(seconds.total)} in all", HALF, 3.5)
    axes = figure.subplots()
    unit, name = (
        (1, "seconds") if seconds.total < 180 else (60, "minutes") if seconds.total < 3 * 3600 else (3600, "hours")
    )
    lengths = [value / unit for _, value in bars]
    colors = [BLUE] * len(parts) + [UNPRUNED]
    axes.barh([label for label, _ in bars], lengths, height=0.62, color=colors)
    for place, (length, (_, value)) in enumerate(zip(lengths, bars, strict=True)):
        axes.annotate(
            format_seconds(value), (length, place), xytext=(5, 0), textcoords="offset points", va="center", fontsize=9
        )
    axes.invert_yaxis()
    axes.set(xlabel=name, xlim=(0, 1.28 * max(*lengths, 1e-9)))
    axes.tick_params(axis="y", length=0, labelsize=9.5, labelcolor=INK)
    axes.grid(axis="x")
    return figure


def _points(report: Report) -> list[_Point]:
    points = []
    if report.unpruned.accuracy is not None:
        points.append(_Point("unpruned", report.unpruned.macs, report.unpruned.accuracy, "s", GREEN))
    if pruned := report.pruned:
        if pruned.accuracy is not None:
            points.append(_Point("found", pruned.macs, pruned.accuracy, "o", BLUE))
        if pruned.accuracy_without_distillation is not None:
            points.append(
                _Point("found, not distilled", pruned.macs, pruned.accuracy_without_distillation, "^", ORANGE)
            )
    return points


def _label_shifts(points: list[_Point], visible: float) -> list[float]:
    """Return vertical offsets, in points, that keep labels apart on an axis that spans `visible` percent."""
    # The plot is about 170 points high; labels at a distance of 14 do not touch.
    heights = [170 * point.accuracy / visible for point in points]
    order = sorted(range(len(points)), key=lambda i: heights[i])
    places = dict.fromkeys(order, 0.0)
    for before, i in zip([None, *order], order, strict=False):
        places[i] = heights[i] if before is None else max(heights[i], places[before] + 14)
    shifts = [places[i] - heights[i] for i in range(len(points))]
    return [shift - sum(shifts) / len(shifts) for shift in shifts]
