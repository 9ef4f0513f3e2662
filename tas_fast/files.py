"""Writing a file so that a reader finds the old content or the complete later one, never half of either."""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
from pathlib import Path

from tas_fast.errors import UserError

_FULL = (errno.ENOSPC, errno.EDQUOT)
_REFUSED = (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOENT)


def write_atomic(path: str | os.PathLike[str], content: bytes | str) -> Path:
    """Writes `content` (text as UTF-8, newlines unchanged) to `path` and returns it; missing folders are created.

    The bytes go to a temporary file beside it, reach the disk (fsync) and take the name in one step (os.replace);
    then the folder is synchronised. On failure the file that was there before is untouched and the temporary is gone.

    Raises:
        UserError: the disk or quota is full, or the place may not be written; the message names path and remedy.
    """
    target = Path(path)
    data = content.encode("utf-8") if isinstance(content, str) else content
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        _replace_with(target, data)
    except OSError as error:
        if explained := as_user_error(error, target):
            raise explained from error
        raise
    return target


def make_folder(path: str | os.PathLike[str]) -> Path:
    """Creates the folder `path` with its parents where missing and returns it. Raises `UserError` where it cannot."""
    try:
        Path(path).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise as_user_error(error, path) or error from error
    return Path(path)


def remove_temporaries(folder: str | os.PathLike[str]) -> None:
    """Removes what a killed process left of unfinished `write_atomic` calls in `folder` and its sub-folders."""
    for path in Path(folder).rglob(".*.tmp"):
        path.unlink(missing_ok=True)


def as_user_error(error: OSError, path: str | os.PathLike[str]) -> UserError | None:
    """`error` in words for the person at the keyboard where they can do something about it, else None."""
    if error.errno in _FULL:
        return UserError(f"{path}: no space left on the disk; free some space or choose another folder with --output")
    if error.errno in _REFUSED:
        return UserError(f"{path}: cannot be written ({error.strerror}); choose a writable folder with --output")
    if isinstance(error, FileExistsError | NotADirectoryError | IsADirectoryError):
        return UserError(f"{path}: a file or folder of that name is in the way; remove it or choose another --output")
    return None


def _replace_with(target: Path, data: bytes) -> None:
    temporary = target.with_name(f".{target.name}.{secrets.token_hex(4)}.tmp")
    # Not tempfile: its files are readable by their owner alone, which os.replace would hand on to the result.
    handle = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, target)
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(temporary)
        raise
    _sync_folder(target.parent)


def _sync_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError as error:
        # Some network file systems refuse to synchronise a folder; the file itself is complete by then.
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):
            raise
    finally:
        os.close(handle)
