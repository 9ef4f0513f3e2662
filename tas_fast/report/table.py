"""A report in words and rows: the table that is printed, its parts for the page, and how numbers are written."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tas_fast.report.values import Pruned, Report, Unpruned

TARGET_TOLERANCE = 0.05


def summary_table(report: Report) -> str:
    """Return the run as a plain-text table: ASCII, no newline at the end."""
    lines = [f"{report.method}: {report.model} on {report.dataset}, seed {report.seed}", ""]
    rows = comparison(report)
    sizes = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for name, *cells in rows:
        aligned = (cell.rjust(size) for cell, size in zip(cells, sizes[1:], strict=True))
        lines.append("   ".join([name.ljust(sizes[0]), *aligned]).rstrip())
    lines += ["", *(f"{name.ljust(sizes[0])}   {value}" for name, value in measurements(report))]
    return "\n".join([*lines, *(f"note: {note}" for note in report.notes)])


def headline(report: Report) -> str:
    """Return the result in one sentence."""
    start = f"{report.model} on {report.dataset}"
    if report.pruned is None:
        return f"{start}: no smaller network has been derived yet."
    cost = f"{start} runs with {format_percent(100 * report.pruned.macs_ratio)} of its MACs"
    cost += f" ({format_count(report.pruned.macs)} of {format_count(report.unpruned.macs)})"
    if report.pruned.accuracy is None:
        return f"{cost}; the smaller network has not been trained yet."
    result = f"{cost} at {report.pruned.accuracy:.2f} % accuracy"
    if report.unpruned.accuracy is None:
        return f"{result}."
    change = round(report.pruned.accuracy - report.unpruned.accuracy, 2)
    if change == 0:
        return f"{result}, the same as the unpruned network."
    return f"{result}, {abs(change):.2f} points {'above' if change > 0 else 'below'} the unpruned network."


def target_verdict(report: Report) -> str:
    """Return `within 5 %` or `MISSED by x % (too large)`: the found MACs against the target."""
    if report.pruned is None:
        return "not derived yet"
    excess = report.pruned.macs / report.target["macs"] - 1
    if target_reached(report.pruned.macs, report.target["macs"]):
        return f"within {100 * TARGET_TOLERANCE:.0f} %"
    return f"MISSED by {format_percent(100 * abs(excess))} ({'too large' if excess > 0 else 'too small'})"


def networks(report: Report) -> list[tuple[str, float | None, Unpruned | Pruned]]:
    """Return the networks compared: title, accuracy, and the part of the report with its size."""
    rows: list[tuple[str, float | None, Unpruned | Pruned]] = [("unpruned", report.unpruned.accuracy, report.unpruned)]
    if pruned := report.pruned:
        rows.append(("pruned", pruned.accuracy, pruned))
        if pruned.accuracy_without_distillation is not None:
            rows.append(("without distillation", pruned.accuracy_without_distillation, pruned))
    return rows


def comparison(report: Report) -> list[tuple[str, ...]]:
    """Return rows of a table: a quantity's name, then one cell for each of `networks(report)`."""
    titles, accuracies, parts = zip(*networks(report), strict=True)
    unpruned = report.unpruned
    return [
        ("", *titles),
        ("accuracy", *("-" if accuracy is None else f"{accuracy:.2f} %" for accuracy in accuracies)),
        ("MACs", *(format_count(part.macs) for part in parts)),
        ("MACs / unpruned", *(format_percent(100 * part.macs / unpruned.macs) for part in parts)),
        ("MACs / target", *(format_percent(100 * part.macs / report.target["macs"]) for part in parts)),
        ("parameters", *(f"{part.parameters:,}" for part in parts)),
        ("parameters / unpruned", *(format_percent(100 * part.parameters / unpruned.parameters) for part in parts)),
    ]


def measurements(report: Report) -> list[tuple[str, str]]:
    """Return what concerns the run as a whole: names and formatted values."""
    target = f"{format_count(report.target['macs'])} MACs ({format_percent(100 * report.target['ratio'])} of unpruned)"
    phases = ((name, getattr(report.seconds, name)) for name in ("teacher", "search", "distill", "total"))
    rows = [
        ("target", f"{target}: {target_verdict(report)}"),
        ("time", ", ".join(f"{name} {format_seconds(time)}" for name, time in phases if time is not None)),
    ]
    if report.search_step_ms is not None:
        rows.append(("search step", f"{report.search_step_ms:,.1f} ms (weights + architecture)"))
    if report.images_per_second is not None:
        rows.append(("speed", f"{report.images_per_second:,.0f} images/s"))
    return [*rows, ("device", report.device), ("backend", report.backend)]


def target_reached(macs: int, target_macs: int) -> bool:
    """Return whether `macs` are within 5 % of the target, on either side."""
    return abs(macs - target_macs) <= TARGET_TOLERANCE * target_macs


def format_count(value: float) -> str:
    """Return `value` with three decimals at most and a unit: `40.81 M`."""
    for limit, unit in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        # 999,995 would otherwise become "1000.00 k".
        if abs(value) >= 0.999995 * limit:
            return f"{value / limit:,.2f} {unit}"
    return f"{value:,.0f}"


def format_percent(value: float) -> str:
    """Return `value`, in percent, with one decimal."""
    return f"{value:,.1f} %"


def format_seconds(seconds: float) -> str:
    """Return a duration in words that fit its length: `4.2 s`, `3 min 07 s`, `2 h 05 min`."""
    if seconds < 59.95:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    minutes = round(seconds / 60)
    return f"{minutes // 60} h {minutes % 60:02d} min"
