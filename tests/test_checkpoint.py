"""Checkpoints: whole or refused, the newest whole one wins, nothing in them is executed."""

import errno
import hashlib
import os
import pickle

import pytest
import torch

from tas_fast.checkpoint import CheckpointStore, read
from tas_fast.errors import UserError


def test_round_trip(tmp_path):
    state = {"tensor": torch.randn(3), "nested": {"list": [1, 2.5, "text", None]}, "epoch": 3}
    path = CheckpointStore(tmp_path).save(state)
    loaded = read(path)
    assert torch.equal(loaded["tensor"], state["tensor"])
    assert loaded["nested"] == state["nested"]


def test_only_the_last_checkpoints_stay(tmp_path):
    store = CheckpointStore(tmp_path, keep=3)
    for step in range(5):
        store.save({"step": step})
    assert [read(path)["step"] for path in store.files()] == [2, 3, 4]
    assert len(list(tmp_path.iterdir())) == 3


def test_no_checkpoint_is_no_error(tmp_path):
    assert CheckpointStore(tmp_path / "absent").load() is None


@pytest.mark.parametrize("damage", ["truncate", "flip", "empty"])
def test_damaged_newest_is_reported_and_the_previous_taken(tmp_path, damage, caplog):
    store = CheckpointStore(tmp_path)
    store.save({"step": 1})
    newest = store.save({"step": 2})
    data = bytearray(newest.read_bytes())
    if damage == "flip":
        data[len(data) // 2] ^= 1
    newest.write_bytes({"truncate": data[:-7], "flip": data, "empty": b""}[damage])
    assert store.load()["step"] == 1
    assert "is damaged: its checksum does not match its name; trying the previous" in caplog.text


def test_nothing_but_damage_is_an_error(tmp_path):
    store = CheckpointStore(tmp_path)
    store.save({"step": 1}).write_bytes(b"rubbish")
    with pytest.raises(UserError, match="none of the 1 checkpoints"):
        store.load()


class Exploit:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


def test_pickled_code_is_refused_and_not_run(tmp_path):
    victim = tmp_path / "executed"
    data = pickle.dumps({"format_version": 1, "state": Exploit(victim)}, protocol=2)
    path = tmp_path / f"00000000-{hashlib.sha256(data).hexdigest()[:16]}.pt"
    path.write_bytes(data)
    with pytest.raises(UserError, match="more than tensors and plain values"):
        read(path)
    assert not victim.exists()


def test_full_disk_leaves_the_previous_checkpoint(tmp_path, monkeypatch):
    store = CheckpointStore(tmp_path)
    store.save({"step": 1})

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(UserError, match="full"):
        store.save({"step": 2})
    monkeypatch.undo()
    assert [read(path)["step"] for path in store.files()] == [1]
    assert len(list(tmp_path.iterdir())) == 1


def test_another_format_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr("tas_fast.checkpoint.FORMAT_VERSION", 99)
    path = CheckpointStore(tmp_path).save({})
    monkeypatch.undo()
    with pytest.raises(UserError, match="not of format_version 1"):
        read(path)
