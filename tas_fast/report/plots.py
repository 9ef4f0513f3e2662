"""The plots of a run: which there are, what each shows, and their files in `plots/`."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tas_fast.architecture import Architecture
from tas_fast.files import write_atomic
from tas_fast.report import drawing, probability_plots, result_plots, search_plots
from tas_fast.report.layers import list_layers
from tas_fast.report.values import Report


@dataclass(frozen=True)
class Plot:
    """A plot for the page. `caption` says what to see, `wide` asks for the page's whole width, `svg` is an element."""

    name: str
    caption: str
    wide: bool
    svg: str


def save_plots(
    folder: str | os.PathLike[str],
    report: Report,
    rows: list[dict[str, Any]],
    architecture: Architecture | None = None,
) -> tuple[Plot, ...]:
    """Write `folder/plots/<name>.png` for everything there is data for, and return the same plots for the page.

    Args:
        rows: what `read_metrics` returns; may be empty.
        architecture: the network found; None before there is one.

    Raises:
        UserError: the disk is full.
    """
    plots = []
    with drawing.style():
        for name, (caption, wide, draw) in _all_plots(report, rows, architecture).items():
            figure = draw()
            if figure is not None:
                drawing.settle(figure)
                write_atomic(Path(folder) / "plots" / f"{name}.png", drawing.render_png(figure))
                plots.append(Plot(name, caption, wide, drawing.render_svg(figure, name, caption)))
    return tuple(plots)


def _all_plots(
    report: Report, rows: list[dict[str, Any]], architecture: Architecture | None
) -> dict[str, tuple[str, bool, Callable[[], Any | None]]]:
    bind = functools.partial
    plots: dict[str, tuple[str, bool, Callable[[], Any | None]]] = {
        "tradeoff": (
            "Left is cheaper, up is better; the dashed line is where the search was sent.",
            False,
            bind(result_plots.plot_tradeoff, report),
        ),
        "accuracy": (
            "Test accuracy while training; during the search, accuracy of randomly sampled smaller networks.",
            False,
            bind(result_plots.plot_accuracy, rows),
        ),
    }
    if architecture is not None:
        plots["widths"] = (
            "What is left of every convolution: blue of grey; where whole blocks were removed nothing is left.",
            True,
            bind(search_plots.plot_widths, list_layers(architecture)),
        )
    return plots | {
        "macs": (
            "The search has done its part when both lines end in the grey band.",
            False,
            bind(search_plots.plot_macs, rows),
        ),
        "entropy": (
            "Falling lines are stages making up their mind; at 1 the choice is still a toss-up.",
            False,
            bind(probability_plots.plot_width_entropy, rows, report.model),
        ),
        "width_probabilities": (
            "Each column is a convolution, each row a width; bright is probable, and a dot marks the most probable.",
            True,
            bind(probability_plots.plot_width_probabilities, rows, report.model),
        ),
        "depth_probabilities": (
            "Bright is probable; the white line is the number of blocks that would be kept.",
            False,
            bind(probability_plots.plot_depth_probabilities, rows),
        ),
        "time": (
            "Where the time went; comparison, evaluation, data and writing are in everything else.",
            False,
            bind(result_plots.plot_time, report),
        ),
    }
