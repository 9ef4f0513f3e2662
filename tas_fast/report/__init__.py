"""A run's folder: the report as a value, metrics as they are measured, plots, and the page that shows them."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from tas_fast.architecture import Architecture
from tas_fast.errors import UserError
from tas_fast.files import write_atomic
from tas_fast.report.html import write_html
from tas_fast.report.metrics import FILE_NAME, MetricsLog, read_metrics
from tas_fast.report.plots import Plot, save_plots
from tas_fast.report.table import TARGET_TOLERANCE, headline, target_reached, target_verdict
from tas_fast.report.values import Pruned, Report, Seconds, Unpruned

__all__ = [
    "TARGET_TOLERANCE",
    "MetricsLog",
    "Plot",
    "Pruned",
    "Report",
    "Seconds",
    "Unpruned",
    "headline",
    "read_metrics",
    "read_report",
    "save_plots",
    "target_reached",
    "target_verdict",
    "write_html",
    "write_report",
]


def write_report(
    folder: str | os.PathLike[str], report: Report, architecture: dict[str, Any] | Architecture | None = None
) -> Path:
    """Write `report.json`, `report.html` and `plots/` of a run into `folder` and return the path of the page.

    Metrics are read from `folder/metrics.jsonl`, the configuration from `folder/config.yaml`, where these exist.

    Raises:
        UserError: a file cannot be written or `metrics.jsonl` is damaged.
        ValueError: the report holds a number that is not finite.
    """
    text = json.dumps(report.to_dict(), indent=2, allow_nan=False)
    write_atomic(Path(folder) / "report.json", text + "\n")
    metrics = Path(folder) / FILE_NAME
    return write_html(folder, report, read_metrics(metrics) if metrics.exists() else [], architecture)


def read_report(path: str | os.PathLike[str]) -> Report:
    """Return the report stored in the file `path`. Raises `UserError` where it is absent or not a report."""
    try:
        values = json.loads(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise UserError(f"{path}: no such file; expected the report.json of a run") from error
    except ValueError as error:
        raise UserError(f"{path}: not a report, {error}") from error
    return Report.from_dict(values)
