import errno
import logging
import os
import sys

import numpy as np
import pytest

from tas_fast.errors import UserError
from tas_fast.report.metrics import MetricsLog, read_metrics


def row(step, phase="search", **values):
    return {"phase": phase, "step": step, "epoch": step // 4, "loss": 1 / (step + 1), **values}


@pytest.fixture
def no_tensorboard(monkeypatch):
    """Spares the tests of the file the writers of TensorBoard."""
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)


def scalars(folder, name):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder)).Reload()
    return [(event.step, pytest.approx(event.value)) for event in events.Scalars(name)]


def test_rows_come_back_in_order(tmp_path, no_tensorboard):
    rows = [row(0), row(1, probs=[[0.5, 0.5]], choices=None), row(0, phase="distill")]
    with MetricsLog(tmp_path) as log:
        for each in rows:
            log.append(each)
    assert read_metrics(tmp_path / "metrics.jsonl") == rows


def test_each_row_is_in_the_file_at_once(tmp_path, no_tensorboard):
    with MetricsLog(tmp_path) as log:
        log.append(row(0))
        assert read_metrics(log.path) == [row(0)]
        assert log.position() == log.path.stat().st_size


@pytest.mark.parametrize("torn", [b"", b'{"phase":"search","st', b'{"phase":"search","step":9,"epoch":1}\n{"pha'])
def test_a_resumed_file_equals_an_uninterrupted_one(tmp_path, no_tensorboard, torn):
    with MetricsLog(tmp_path / "whole") as log:
        for step in range(6):
            log.append(row(step))

    log = MetricsLog(tmp_path / "killed")
    for step in range(3):
        log.append(row(step))
    position = log.position()
    log.append(row(3, loss=7.0))
    log.close()
    with open(log.path, "ab") as file:
        file.write(torn)

    with MetricsLog(tmp_path / "killed", resume_at=position) as log:
        for step in range(3, 6):
            log.append(row(step))
    assert log.path.read_bytes() == (tmp_path / "whole" / "metrics.jsonl").read_bytes()


def test_resuming_at_zero_starts_over(tmp_path, no_tensorboard):
    with MetricsLog(tmp_path) as log:
        log.append(row(0))
    with MetricsLog(tmp_path, resume_at=0) as log:
        assert log.position() == 0
    assert read_metrics(log.path) == []


def test_a_file_shorter_than_the_checkpoint_says_is_refused_and_kept(tmp_path, no_tensorboard):
    with MetricsLog(tmp_path) as log:
        log.append(row(0))
        size = log.position()
    with pytest.raises(UserError, match=f"has {size} bytes, the checkpoint expects {size + 1}"):
        MetricsLog(tmp_path, resume_at=size + 1)
    assert read_metrics(log.path) == [row(0)]


def test_an_offset_within_a_line_is_refused_and_the_file_kept(tmp_path, no_tensorboard):
    with MetricsLog(tmp_path) as log:
        log.append(row(0))
    with pytest.raises(UserError, match="byte 5 is not the end of a line"):
        MetricsLog(tmp_path, resume_at=5)
    assert read_metrics(log.path) == [row(0)]


def test_a_full_disk_leaves_whole_rows(tmp_path, no_tensorboard, monkeypatch):
    log = MetricsLog(tmp_path)
    log.append(row(0))
    write = os.write
    outcomes = iter([lambda file, data: write(file, data[:7])])

    def fill_up(file, data):
        for outcome in outcomes:
            return outcome(file, data)
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "write", fill_up)
    with pytest.raises(UserError, match=r"metrics\.jsonl: no space left on the disk"):
        log.append(row(1))
    monkeypatch.undo()
    log.append(row(2))
    log.close()
    assert read_metrics(log.path) == [row(0), row(2)]


def test_short_writes_are_completed(tmp_path, no_tensorboard, monkeypatch):
    write = os.write
    monkeypatch.setattr(os, "write", lambda file, data: write(file, data[:5]))
    with MetricsLog(tmp_path) as log:
        log.append(row(0))
    monkeypatch.undo()
    assert read_metrics(log.path) == [row(0)]


@pytest.mark.parametrize("missing", ["phase", "step", "epoch"])
def test_a_row_without_its_place_is_refused(tmp_path, no_tensorboard, missing):
    values = row(0)
    del values[missing]
    with MetricsLog(tmp_path) as log, pytest.raises(ValueError, match=f"lacks {missing}"):
        log.append(values)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_value_that_is_not_finite_is_named(tmp_path, no_tensorboard, value):
    with MetricsLog(tmp_path) as log, pytest.raises(ValueError, match=r"must be finite, got \{'loss': "):
        log.append(row(0, loss=value))
    assert read_metrics(log.path) == []


def test_arrays_become_lists(tmp_path, no_tensorboard):
    with MetricsLog(tmp_path) as log:
        log.append(row(0, probs=np.array([0.25, 0.75]), accuracy=np.float32(0.5)))
    assert read_metrics(log.path) == [row(0, probs=[0.25, 0.75], accuracy=0.5)]


def test_a_value_without_meaning_in_json_is_named(tmp_path, no_tensorboard):
    with MetricsLog(tmp_path) as log, pytest.raises(TypeError, match="got set"):
        log.append(row(0, names={"a"}))


def test_a_torn_last_line_is_not_read(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(b'{"phase":"search","step":0,"epoch":0}\n{"phase":"sea')
    assert [each["step"] for each in read_metrics(path)] == [0]


@pytest.mark.parametrize("line", ["nonsense", "[1]", '{"phase":"search"}'])
def test_a_damaged_line_is_named(tmp_path, line):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"phase":"search","step":0,"epoch":0}\n' + line + "\n")
    with pytest.raises(UserError, match="line 2"):
        read_metrics(path)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(UserError, match=r"metrics\.jsonl: no such file"):
        read_metrics(tmp_path / "metrics.jsonl")


def test_scalars_reach_tensorboard_by_phase(tmp_path):
    with MetricsLog(tmp_path) as log:
        log.append(row(0, phase="teacher", width_probs=[[1.0]]))
        log.append(row(0, accuracy=50))
        log.append(row(1, accuracy=60))
    assert log.tensorboard == "TensorBoard is on"
    assert scalars(tmp_path / "tensorboard" / "search", "accuracy") == [(0, 50), (1, 60)]
    assert scalars(tmp_path / "tensorboard" / "teacher", "loss") == [(0, 1.0)]


def test_tensorboard_forgets_what_is_measured_again(tmp_path):
    log = MetricsLog(tmp_path)
    for step in range(3):
        log.append(row(step, phase="teacher"))
    log.append(row(0, accuracy=1.0))
    position = log.position()
    log.append(row(1, accuracy=99.0))
    log.append(row(2, accuracy=99.0))
    log.close()
    with MetricsLog(tmp_path, resume_at=position) as log:
        log.append(row(1, accuracy=2.0))
    assert scalars(tmp_path / "tensorboard" / "search", "accuracy") == [(0, 1.0), (1, 2.0)]
    assert len(scalars(tmp_path / "tensorboard" / "teacher", "loss")) == 3


def test_a_missing_tensorboard_is_said_once_and_the_rows_are_kept(tmp_path, no_tensorboard, caplog):
    with caplog.at_level(logging.WARNING), MetricsLog(tmp_path) as log:
        log.append(row(0))
        log.append(row(1))
    assert log.tensorboard.startswith("TensorBoard is off")
    assert [record.getMessage() for record in caplog.records] == [log.tensorboard]
    assert len(read_metrics(log.path)) == 2
    assert not (tmp_path / "tensorboard").exists()
