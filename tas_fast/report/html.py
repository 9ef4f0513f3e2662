"""`report.html`: a run on one page that needs no network, no script and no other file."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import re
import shlex
from collections.abc import Iterable
from html import escape
from pathlib import Path
from string import Template
from typing import Any

from tas_fast.architecture import Architecture
from tas_fast.files import write_atomic
from tas_fast.report import table
from tas_fast.report.layers import Part, list_parts
from tas_fast.report.plots import Plot, save_plots
from tas_fast.report.style import CSS
from tas_fast.report.values import Report

_PAGE = Template("""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'; img-src data:">
<title>$title</title>
<style>$css</style>
</head>
<body>
<main>
<p class="eyebrow">$eyebrow</p>
<h1>$headline</h1>
$sections
<footer>Written by tas_fast $version.</footer>
</main>
</body>
</html>
""")


def write_html(
    folder: str | os.PathLike[str],
    report: Report,
    rows: list[dict[str, Any]],
    architecture: dict[str, Any] | Architecture | None,
) -> Path:
    """Write `folder/report.html` and `folder/plots/*.png`; return the path of the page.

    Args:
        rows: what `read_metrics` returns; may be empty.
        architecture: the network found, as a value or as its `to_dict()`; None before there is one.

    Raises:
        UserError: `architecture` is not one; the disk is full.
    """
    found = Architecture.from_dict(architecture) if isinstance(architecture, dict) else architecture
    plots = save_plots(folder, report, rows, found)
    sections = [
        _tiles(report),
        _notes(report.notes),
        _section("Result", _card(_comparison(report))),
        _section("Plots", '<div class="plots">' + "".join(map(_figure, plots)) + "</div>"),
        _section("Architecture", _card(_parts(list_parts(found)))) if found else "",
        _section("Use it" if report.pruned else "Go on", _usage(folder, report)),
        _section("How it was made", _origin(Path(folder), report)),
    ]
    page = _PAGE.substitute(
        title=escape(f"{report.model} on {report.dataset}: {report.method}"),
        css=CSS,
        eyebrow=escape(f"{report.method} · {report.model} · {report.dataset} · seed {report.seed} · {report.device}"),
        headline=_unbroken(escape(table.headline(report))),
        sections="\n".join(section for section in sections if section),
        version=escape(report.version),
    )
    return write_atomic(Path(folder) / "report.html", page)


def _tiles(report: Report) -> str:
    pruned, unpruned = report.pruned, report.unpruned
    if pruned is None:
        return ""
    reached = table.target_reached(pruned.macs, report.target["macs"])
    badge = f'<span class="badge {"good" if reached else "bad"}">target: {escape(table.target_verdict(report))}</span>'
    tiles = [
        _tile(table.format_percent(100 * pruned.macs_ratio), f"of the MACs, {table.format_count(pruned.macs)}", badge),
        _tile(
            table.format_percent(100 * (1 - pruned.sparsity)),
            f"of the parameters, {pruned.parameters:,} of {unpruned.parameters:,}",
        ),
    ]
    if pruned.accuracy is not None:
        before = "" if unpruned.accuracy is None else f", unpruned {unpruned.accuracy:.2f} %"
        tiles.insert(1, _tile(f"{pruned.accuracy:.2f} %", f"accuracy{before}"))
    return '<div class="tiles">' + "".join(tiles) + "</div>"


def _unbroken(text: str) -> str:
    """Return `text` with numbers and their units kept on one line."""
    return re.sub(r"(?<=\d) (?=[%kMG](?!\w))", "\N{NO-BREAK SPACE}", text)


def _tile(number: str, text: str, extra: str = "") -> str:
    return f'<div class="card tile"><b>{escape(number)}</b><span>{escape(text)}</span> {extra}</div>'


def _notes(notes: tuple[str, ...]) -> str:
    return f'<ul class="notes">{"".join(f"<li>{escape(note)}</li>" for note in notes)}</ul>' if notes else ""


def _section(title: str, content: str) -> str:
    return f"<section><h2>{escape(title)}</h2>\n{content}</section>"


def _card(content: str) -> str:
    return f'<div class="card scroll">{content}</div>'


def _comparison(report: Report) -> str:
    head, *rows = table.comparison(report)
    return _table(head, ([f'<th scope="row">{escape(name)}</th>', *map(_cell, cells)] for name, *cells in rows))


def _parts(parts: tuple[Part, ...]) -> str:
    head = ("part", "blocks kept", "channels of each block", "MACs before", "MACs after", "remaining")
    rows = []
    for part in parts:
        blocks = f"{part.kept} of {part.blocks}" if part.name.startswith("stage") else ""
        widths = " ".join(f"<i>{'-'.join(map(str, block))}</i>" for block in part.widths)
        macs = (table.format_count(part.macs), table.format_count(part.kept_macs))
        remaining = table.format_percent(100 * part.kept_macs / part.macs)
        cells = [_cell(blocks), f'<td class="widths">{widths}</td>', *map(_cell, macs), _cell(remaining)]
        rows.append([f'<th scope="row">{escape(part.name)}</th>', *cells])
    return _table(head, rows)


def _table(head: Iterable[str], rows: Iterable[list[str]]) -> str:
    header = "".join(
        f'<th scope="col"{" class=text" * name.startswith("channels")}>{escape(name)}</th>' for name in head
    )
    body = "\n".join(f"<tr>{''.join(row)}</tr>" for row in rows)
    return f"<table><thead><tr>{header}</tr></thead>\n<tbody>\n{body}\n</tbody></table>"


def _cell(text: str) -> str:
    return f"<td>{escape(text)}</td>"


def _figure(plot: Plot) -> str:
    kind, scroll = (' class="wide"', ' class="scroll"') if plot.wide else ("", "")
    return f"<figure{kind}><div{scroll}>{plot.svg}</div><figcaption>{escape(plot.caption)}</figcaption></figure>\n"


def _usage(folder: str | os.PathLike[str], report: Report) -> str:
    place = os.fspath(folder)
    if report.pruned is None:
        return "<p>Continue where the run stopped:</p>" + _code(
            f"python -m tas_fast.search --resume {shlex.quote(place)}"
        )
    load = f"import tas_fast\n\nmodel = tas_fast.load({place!r})"
    return (
        "<p>Load the smaller network in Python; it is an ordinary <code>torch.nn.Module</code>:</p>"
        f"{_code(load)}<p>Measure its accuracy again:</p>{_code(f'python -m tas_fast.evaluate {shlex.quote(place)}')}"
    )


def _code(text: str) -> str:
    return f"<pre><code>{escape(text)}</code></pre>"


def _origin(folder: Path, report: Report) -> str:
    parts = [_code(report.command), _details("Measurements and environment", _facts(report))]
    if (folder / "config.yaml").is_file():
        config = (folder / "config.yaml").read_text(encoding="utf-8", errors="replace")
        parts.append(_details("Configuration (config.yaml)", _code(config)))
    return "\n".join(parts)


def _facts(report: Report) -> str:
    versions = [(name, _version(name)) for name in ("torch", "torchvision", "triton")]
    facts = [
        *table.measurements(report),
        ("seed", str(report.seed)),
        ("tas_fast", report.version),
        ("python", platform.python_version()),
        *((name, version) for name, version in versions if version),
        ("system", platform.platform()),
    ]
    rows = "\n".join(f'<tr><th scope="row">{escape(k)}</th><td class="text">{escape(v)}</td></tr>' for k, v in facts)
    return f'<div class="card scroll"><table><tbody>\n{rows}\n</tbody></table></div>'


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _details(title: str, content: str) -> str:
    return f"<details><summary>{escape(title)}</summary>\n{content}</details>"
