import errno
import json
import os
import re
from html.parser import HTMLParser

import pytest
from report_samples import found, report, search_rows, training_rows

from tas_fast.errors import UserError
from tas_fast.report import MetricsLog, read_report, write_html, write_report
from tas_fast.report.values import Pruned, Seconds, Unpruned

HOSTILE = """<script>alert("1")</script> & 'x' $headline </style>"""
NAMES = ("command", "version", "device", "backend", "dataset", "model", "method")
VOID = {"meta", "br", "hr", "img", "link", "input"}


class Page(HTMLParser):
    """Reads a page strictly: every element must be closed in its turn."""

    def __init__(self, text):
        super().__init__()
        self.text, self.tags, self.attributes, self.open = "", [], [], []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data


def write(folder, rows=(), architecture=None, **changes):
    return Page(write_html(folder, report(**changes), list(rows), architecture).read_text())


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The page of a complete run."""
    folder = tmp_path_factory.mktemp("run")
    (folder / "config.yaml").write_text("model: resnet20\ncomment: <b>bold</b>\n")
    rows = training_rows("teacher") + search_rows("resnet20") + training_rows("distill") + training_rows("compare")
    return write(folder, rows, found("resnet20").to_dict(), notes=("the loader fell back to one process",))


@pytest.mark.parametrize(
    "text",
    [
        "98.61 %",
        "0.28 points below the unpruned network",
        "without distillation",
        "within 5 %",
        "the loader fell back to one process",
        "stage 3",
        "tas_fast.load(",
        "python -m tas_fast.search --amp",
        "reference (no compiler on PATH)",
        "comment: <b>bold</b>",
    ],
)
def test_the_page_says(whole, text):
    assert text in whole.text.replace("\N{NO-BREAK SPACE}", " ")


def test_the_page_holds_every_plot(whole):
    assert whole.tags.count("svg") == whole.tags.count("figure") == 8


def test_the_page_needs_nothing_else(whole):
    assert not {"script", "link", "iframe", "object"} & set(whole.tags)
    places = [value for name, value in whole.attributes if name in ("src", "href", "xlink:href")]
    assert all(value.startswith(("#", "data:image/png;base64,")) for value in places)
    assert not [name for name, _ in whole.attributes if name.startswith("on")]


@pytest.fixture(scope="module")
def hostile(tmp_path_factory):
    """The page of a run in which every name is markup."""
    names = {name: f"{HOSTILE} {name}" for name in NAMES}
    return write(tmp_path_factory.mktemp("run"), search_rows("resnet20", 1), **names, notes=(f"{HOSTILE} notes",))


@pytest.mark.parametrize("name", [*NAMES, "notes"])
def test_names_are_text_and_never_markup(hostile, name):
    assert "script" not in hostile.tags
    assert f"{HOSTILE} {name}" in hostile.text


def test_a_hostile_folder_is_quoted_for_shell_and_python(tmp_path):
    folder = tmp_path / "it's; <b>rm</b>"
    page = write(folder)
    assert "b" not in page.tags[page.tags.index("section") :]
    assert f"tas_fast.load({str(folder)!r})" in page.text
    assert "it'\"'\"'s; <b>rm</b>'" in page.text


def test_a_missed_target_is_marked(tmp_path):
    page = write(tmp_path, target={"macs": 10_000_000, "ratio": 0.245, "reached": False})
    assert "MISSED by 109.0 % (too large)" in page.text
    assert ("class", "badge bad") in page.attributes


@pytest.mark.parametrize(
    "changes",
    [
        {"pruned": None, "unpruned": Unpruned(None, 10, 20), "seconds": Seconds(None, None, None, 0.0)},
        {"pruned": Pruned(None, None, 5, 0.5, 9, 0.55), "search_step_ms": None, "images_per_second": None},
        {"pruned": Pruned(97.0, 97.0, 5, 0.5, 9, 0.55), "unpruned": Unpruned(None, 10, 20)},
    ],
)
def test_unfinished_runs_and_runs_without_distillation_have_a_page(tmp_path, changes):
    page = write(tmp_path, **changes)
    assert "None" not in page.text
    assert "nan" not in page.text


def test_an_unfinished_run_says_how_to_continue(tmp_path):
    page = write(tmp_path, pruned=None)
    assert f"--resume {tmp_path}" in page.text
    assert "tas_fast.load" not in page.text


def test_something_else_than_an_architecture_is_refused(tmp_path):
    with pytest.raises(UserError, match="architecture"):
        write(tmp_path, architecture={"widths": [1]})


def test_a_run_is_written_whole_and_read_back(tmp_path):
    with MetricsLog(tmp_path) as log:
        for row in training_rows("teacher", 2):
            log.append(row)
    page = write_report(tmp_path, report())
    assert read_report(tmp_path / "report.json") == report()
    assert page == tmp_path / "report.html"
    assert (tmp_path / "plots" / "accuracy.png").exists()
    assert not [path for path in tmp_path.rglob("*") if path.suffix == ".tmp"]


def test_numbers_that_are_not_finite_never_reach_the_file(tmp_path):
    with pytest.raises(ValueError, match="JSON"):
        write_report(tmp_path, report(search_step_ms=float("nan")))
    assert os.listdir(tmp_path) == []


def test_a_full_disk_keeps_the_previous_report(tmp_path, monkeypatch):
    write_report(tmp_path, report())
    before = {path: path.read_bytes() for path in tmp_path.rglob("*.*")}

    def full(*args):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(UserError, match=r"report\.json: no space left"):
        write_report(tmp_path, report(seed=1))
    assert {path: path.read_bytes() for path in tmp_path.rglob("*.*")} == before


@pytest.mark.parametrize(("text", "message"), [(None, "no such file"), ("{", "not a report"), ("[]", "JSON object")])
def test_reading_something_else_is_one_line(tmp_path, text, message):
    path = tmp_path / "report.json"
    if text is not None:
        path.write_text(text)
    with pytest.raises(UserError, match=message) as caught:
        read_report(path)
    assert re.search("\n", str(caught.value)) is None


def test_report_json_is_plain_json(tmp_path):
    write_report(tmp_path, report())
    assert json.loads((tmp_path / "report.json").read_text())["unpruned"]["macs"] == 40_813_194
