import errno
import os
import stat

import pytest

from tas_fast.errors import UserError
from tas_fast.files import write_atomic


def fail_with(number):
    def fail(*args, **kwargs):
        raise OSError(number, os.strerror(number))

    return fail


@pytest.mark.parametrize(("content", "stored"), [(b"\x00\xff", b"\x00\xff"), ("é\n", b"\xc3\xa9\n"), ("", b"")])
def test_bytes_and_text_are_stored_unchanged(tmp_path, content, stored):
    path = write_atomic(tmp_path / "a" / "b.txt", content)
    assert path.read_bytes() == stored
    assert os.listdir(path.parent) == ["b.txt"]


def test_existing_file_is_replaced_by_a_shorter_one(tmp_path):
    write_atomic(tmp_path / "x", "long content")
    write_atomic(tmp_path / "x", "short")
    assert (tmp_path / "x").read_text() == "short"


def test_permissions_follow_the_umask(tmp_path):
    previous = os.umask(0o027)
    try:
        path = write_atomic(tmp_path / "x", "1")
    finally:
        os.umask(previous)
    assert stat.S_IMODE(path.stat().st_mode) == 0o640


@pytest.mark.parametrize("call", ["fsync", "replace"])
@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EACCES])
def test_failure_keeps_the_old_file_and_leaves_no_temporary(tmp_path, monkeypatch, call, number):
    path = write_atomic(tmp_path / "x", "old")
    monkeypatch.setattr(os, call, fail_with(number))
    with pytest.raises(UserError, match=r"x: .*--output") as caught:
        write_atomic(path, "half")
    assert "\n" not in str(caught.value)
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["x"]


def test_interruption_leaves_no_temporary(tmp_path, monkeypatch):
    def interrupt(*args):
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "replace", interrupt)
    with pytest.raises(KeyboardInterrupt):
        write_atomic(tmp_path / "x", "half")
    assert os.listdir(tmp_path) == []


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")
def test_a_really_full_disk_is_one_line(tmp_path, monkeypatch):
    real_open = os.open
    monkeypatch.setattr(os, "open", lambda path, flags, mode=0o777: real_open("/dev/full", os.O_WRONLY))
    with pytest.raises(UserError, match="no space left"):
        write_atomic(tmp_path / "x", "content")


def test_a_file_where_a_folder_should_be_is_named(tmp_path):
    (tmp_path / "runs").write_text("")
    with pytest.raises(UserError, match="in the way"):
        write_atomic(tmp_path / "runs" / "report.json", "{}")


def test_a_folder_where_the_file_should_be_is_named(tmp_path):
    (tmp_path / "x").mkdir()
    with pytest.raises(UserError, match="in the way"):
        write_atomic(tmp_path / "x", "{}")


def test_other_failures_are_not_disguised(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "fsync", fail_with(errno.EIO))
    with pytest.raises(OSError, match="Input/output"):
        write_atomic(tmp_path / "x", "1")
