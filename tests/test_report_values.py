import dataclasses
import json

import pytest
from report_samples import report

from tas_fast.errors import UserError
from tas_fast.report.table import format_count, format_seconds, headline, target_reached, target_verdict
from tas_fast.report.values import Report, Seconds, Unpruned

FIELDS = [
    *("command", "version", "device", "backend", "seed", "dataset", "model", "method", "target", "unpruned", "pruned"),
    *("seconds", "search_step_ms", "images_per_second", "notes"),
]


def missed(macs):
    return dataclasses.replace(report().pruned, macs=macs, macs_ratio=macs / 40_813_194)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"pruned": None, "search_step_ms": None, "images_per_second": None},
        {"unpruned": Unpruned(None, 10, 20), "seconds": Seconds(None, 1.0, None, 2.0)},
        {"notes": ("one", "two")},
    ],
)
def test_a_report_survives_json(changes):
    original = report(**changes)
    assert Report.from_dict(json.loads(json.dumps(original.to_dict()))) == original


def test_the_fields_are_the_documented_ones():
    values = report().to_dict()
    assert list(values) == FIELDS
    assert list(values["unpruned"]) == ["accuracy", "macs", "parameters"]
    assert list(values["pruned"]) == [
        *("accuracy", "accuracy_without_distillation", "macs", "macs_ratio", "parameters", "sparsity")
    ]
    assert list(values["seconds"]) == ["teacher", "search", "distill", "total"]


def test_notes_may_be_absent():
    values = report().to_dict()
    del values["notes"]
    assert Report.from_dict(values).notes == ()


def test_whole_numbers_are_read_where_fractions_are_expected():
    values = report().to_dict()
    values["seconds"]["total"] = 151
    assert type(Report.from_dict(values).seconds.total) is float


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        (("speed",), 1, "unknown fields.*speed"),
        (("unpruned", "flops"), 1, "report.unpruned has unknown fields.*flops"),
        (("unpruned", "macs"), 4.5, "report.unpruned.macs must be int"),
        (("unpruned", "macs"), True, "report.unpruned.macs must be int"),
        (("seed",), "0", "report.seed must be int"),
        (("pruned",), 3, "report.pruned must be a JSON object, got int"),
        (("pruned", "macs_ratio"), None, "report.pruned.macs_ratio must be float"),
        (("target",), {"macs": 1}, "report.target must have the fields"),
        (("target", "reached"), 1, "report.target.reached must be bool"),
        (("notes",), "a note", "report.notes must be a list of strings"),
    ],
)
def test_wrong_fields_are_named(path, value, message):
    values = report().to_dict()
    place = values
    for name in path[:-1]:
        place = place[name]
    place[path[-1]] = value
    with pytest.raises(UserError, match=message):
        Report.from_dict(values)


@pytest.mark.parametrize("path", [("command",), ("seconds", "total")])
def test_missing_fields_are_named(path):
    values = report().to_dict()
    del (values if len(path) == 1 else values[path[0]])[path[-1]]
    with pytest.raises(UserError, match=f"lacks.*{path[-1]}"):
        Report.from_dict(values)


@pytest.mark.parametrize(
    ("macs", "verdict"),
    [
        (20_406_597, "within 5 %"),
        (21_426_000, "within 5 %"),
        (22_447_257, "MISSED by 10.0 % (too large)"),
        (10_203_298, "MISSED by 50.0 % (too small)"),
    ],
)
def test_a_missed_target_is_said_clearly(macs, verdict):
    assert target_verdict(report(pruned=missed(macs))) == verdict
    assert verdict in report(pruned=missed(macs)).summary_table()


@pytest.mark.parametrize(("macs", "reached"), [(950, True), (1050, True), (949, False), (1051, False)])
def test_a_target_is_reached_within_five_percent(macs, reached):
    assert target_reached(macs, 1000) is reached


def test_the_table_is_the_documented_one():
    assert report(notes=("the loader fell back to one process",)).summary_table().splitlines() == [
        "tas: resnet20 on digits, seed 0",
        "",
        "                        unpruned    pruned   without distillation",
        "accuracy                 98.89 %   98.61 %                98.06 %",
        "MACs                     40.81 M   20.90 M                20.90 M",
        "MACs / unpruned          100.0 %    51.2 %                 51.2 %",
        "MACs / target            200.0 %   102.4 %                102.4 %",
        "parameters               269,722   141,203                141,203",
        "parameters / unpruned    100.0 %    52.4 %                 52.4 %",
        "",
        "target                  20.41 M MACs (50.0 % of unpruned): within 5 %",
        "time                    teacher 31.2 s, search 1 min 10 s, distill 44.9 s, total 2 min 31 s",
        "search step             412.3 ms (weights + architecture)",
        "speed                   1,873 images/s",
        "device                  cpu (2 threads)",
        "backend                 reference (no compiler on PATH)",
        "note: the loader fell back to one process",
    ]


def test_the_table_of_an_unfinished_run_has_no_invented_numbers():
    table = report(
        unpruned=Unpruned(None, 40_813_194, 269_722),
        pruned=None,
        seconds=Seconds(None, None, None, 3.0),
        search_step_ms=None,
        images_per_second=None,
    ).summary_table()
    assert "not derived yet" in table
    assert "None" not in table
    assert "ms" not in table


@pytest.mark.parametrize(
    ("pruned", "unpruned", "ending"),
    [
        (98.61, 98.89, "at 98.61 % accuracy, 0.28 points below the unpruned network."),
        (99.0, 98.5, "at 99.00 % accuracy, 0.50 points above the unpruned network."),
        (98.5, 98.5, "at 98.50 % accuracy, the same as the unpruned network."),
        (98.5, None, "at 98.50 % accuracy."),
        (None, 98.5, "the smaller network has not been trained yet."),
    ],
)
def test_the_headline_compares_what_there_is(pruned, unpruned, ending):
    values = report()
    values = report(
        pruned=dataclasses.replace(values.pruned, accuracy=pruned),
        unpruned=dataclasses.replace(values.unpruned, accuracy=unpruned),
    )
    assert headline(values).startswith("resnet20 on digits runs with 51.2 % of its MACs (20.90 M of 40.81 M)")
    assert headline(values).endswith(ending)


@pytest.mark.parametrize(
    ("value", "text"),
    [(0, "0"), (999, "999"), (1000, "1.00 k"), (999_999, "1.00 M"), (40_813_184, "40.81 M"), (4.1e9, "4.10 G")],
)
def test_counts_have_a_unit(value, text):
    assert format_count(value) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0.0 s"),
        (59.94, "59.9 s"),
        (59.96, "1 min 00 s"),
        (187, "3 min 07 s"),
        (3599.7, "1 h 00 min"),
        (7500, "2 h 05 min"),
    ],
)
def test_durations_fit_their_length(seconds, text):
    assert format_seconds(seconds) == text
