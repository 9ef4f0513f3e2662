"""What the search arrived at: widths per layer, and MACs against their target."""

from __future__ import annotations

from typing import Any

import numpy as np

from tas_fast.report import drawing
from tas_fast.report.drawing import BLUE, HALF, LINES, ORANGE, UNPRUNED, WIDE
from tas_fast.report.layers import Layer
from tas_fast.report.rows import Rows, epochs_of, rows_with, thinned


def plot_widths(layers: tuple[Layer, ...]) -> Any:
    """Bars of the channels of every convolution before and after; a panel for each stage, the stem in the first."""
    stages = [[layer for layer in layers if max(layer.stage, 1) == stage] for stage in range(1, layers[-1].stage + 1)]
    figure = drawing.new_figure("Channels of each convolution, before and after", WIDE, 3.3)
    panels = figure.subplots(1, len(stages), width_ratios=[max(len(stage), 4) for stage in stages], squeeze=False)[0]
    first, removed = 0, []
    for number, (axes, stage) in enumerate(zip(panels, stages, strict=True), 1):
        places = np.arange(first, first + len(stage))
        full = axes.bar(places, [layer.full for layer in stage], width=0.8, color=UNPRUNED)
        kept = axes.bar(places, [layer.width for layer in stage], width=0.8, color=BLUE)
        gone = [place for place, layer in zip(places, stage, strict=True) if layer.width == 0]
        if gone:
            removed = axes.plot(
                gone, [0] * len(gone), "x", color=ORANGE, markersize=5, markeredgewidth=1.6, clip_on=False
            )
        axes.set_title(f"stage {number}" if number > 1 or stage[0].stage else "stem and stage 1")
        axes.set_xlim(first - 0.7, first + len(stage) - 0.3)
        drawing.layer_ticks(axes, places, len(layers))
        axes.tick_params(length=0)
        axes.grid(axis="y")
        first += len(stage)
    panels[0].set_ylabel("output channels")
    figure.supxlabel("convolution (0 is the stem)", fontsize=9.5, color=drawing.MUTED)
    handles, labels = [full, kept, *removed], ["unpruned", "kept", "block removed"]
    figure.legend(handles, labels[: len(handles)], loc="upper right", ncols=3, borderpad=0, columnspacing=1.4)
    return figure


def plot_macs(rows: Rows) -> Any | None:
    """Expected MACs and those of the most probable network over epochs, against the target."""
    rows = thinned(rows_with(rows, "search", "expected_macs"))
    if not rows:
        return None
    epochs, target = epochs_of(rows), rows[-1]["target_macs"]
    figure = drawing.new_figure("MACs during the search", HALF, 3.5)
    axes = figure.subplots()
    axes.axhspan(0.95 * target, 1.05 * target, color=UNPRUNED, alpha=0.45, label="target ± 5 %")
    axes.axhline(target, color=drawing.MUTED, linewidth=1)
    marker = "o" if len(rows) < 3 else None
    axes.plot(epochs, [row["expected_macs"] for row in rows], color=BLUE, marker=marker, label="expected")
    argmax = [row.get("argmax_macs") for row in rows]
    axes.plot(epochs, argmax, color=ORANGE, linestyle=LINES[1], marker=marker, label="most probable network")
    axes.set(xlabel="epochs", ylabel="MACs per image", ylim=(0, None), xlim=(0, 1.02 * epochs[-1]))
    drawing.count_axis(axes.yaxis)
    drawing.epoch_axis(axes.xaxis)
    axes.grid(axis="y")
    drawing.legend_above(axes)
    return figure
