"""`metrics.jsonl`: one JSON object a line, in the order in which things were measured, mirrored to TensorBoard.

A checkpoint stores `MetricsLog.position()`. A run resumed from it opens the log at that offset: lines written after the
checkpoint, torn ones included, are cut off before they are measured again.
"""

from __future__ import annotations

import contextlib
import json
import logging
import math
import os
from pathlib import Path
from typing import Any

from tas_fast.errors import UserError
from tas_fast.files import as_user_error

FILE_NAME = "metrics.jsonl"
_REQUIRED = ("phase", "step", "epoch")

logger = logging.getLogger(__name__)


class MetricsLog:
    """Appends rows to `folder/metrics.jsonl` and their scalars to `folder/tensorboard/<phase>`.

    Each phase is a TensorBoard run of its own, since each counts its steps from zero; one chart per quantity.

    Args:
        folder: the run's folder; created where missing.
        resume_at: byte offset from `position()` to continue at; None starts an empty file.

    Raises:
        UserError: the file is shorter than `resume_at` or the offset is not the end of a line; the disk is full.
    """

    def __init__(self, folder: str | os.PathLike[str], resume_at: int | None = None) -> None:
        self.folder = Path(folder)
        self.path = self.folder / FILE_NAME
        self._writers: dict[str, Any] = {}
        self._last_steps: dict[str, int] = {}
        self._writer_class, self.tensorboard = _find_tensorboard()
        with _explained(self.path):
            self.folder.mkdir(parents=True, exist_ok=True)
            self._size = _checked_offset(self.path, resume_at or 0)
            self._file = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
            os.ftruncate(self._file, self._size)
            os.lseek(self._file, 0, os.SEEK_END)
        for row in read_metrics(self.path):
            self._last_steps[row["phase"]] = row["step"]

    def append(self, row: dict[str, Any]) -> None:
        """Add one row: `phase` (str), `step` and `epoch` (int), and any values JSON can hold (tensors become lists).

        Raises:
            ValueError: a required field is missing or a value is not finite.
            UserError: the disk is full; the file ends with the row before.
        """
        missing = [name for name in _REQUIRED if name not in row]
        if missing:
            raise ValueError(f"metrics: a row must have {', '.join(_REQUIRED)}; it lacks {', '.join(missing)}")
        try:
            line = json.dumps(row, default=_plain, allow_nan=False, separators=(",", ":")).encode() + b"\n"
        except ValueError as error:
            broken = {
                name: value for name, value in row.items() if isinstance(value, float) and not math.isfinite(value)
            }
            raise ValueError(f"metrics: every value must be finite, got {broken or error}") from error
        with _explained(self.path):
            self._write(line)
        self._mirror(row)
        self._last_steps[row["phase"]] = row["step"]

    def position(self) -> int:
        """Return the byte offset behind the last row, once everything before it is on the disk."""
        with _explained(self.path):
            os.fsync(self._file)
        return self._size

    def close(self) -> None:
        """Close the file and TensorBoard's. Closing twice is harmless."""
        for writer in self._writers.values():
            writer.close()
        self._writers.clear()
        if self._file >= 0:
            os.close(self._file)
            self._file = -1

    def __enter__(self) -> MetricsLog:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def _write(self, line: bytes) -> None:
        written = 0
        try:
            while written < len(line):
                written += os.write(self._file, line[written:])
        except BaseException:
            os.ftruncate(self._file, self._size)
            os.lseek(self._file, self._size, os.SEEK_SET)
            raise
        self._size += len(line)

    def _mirror(self, row: dict[str, Any]) -> None:
        if self._writer_class is None:
            return
        phase = row["phase"]
        if phase not in self._writers:
            # TensorBoard then hides what an interrupted run wrote at this step and later.
            purge_step = self._last_steps.get(phase, -1) + 1
            self._writers[phase] = self._writer_class(self.folder / "tensorboard" / phase, purge_step=purge_step)
        for name, value in row.items():
            if name != "step" and isinstance(value, int | float) and not isinstance(value, bool):
                self._writers[phase].add_scalar(name, value, row["step"])


def read_metrics(path: str | os.PathLike[str]) -> list[dict[str, Any]]:
    """Return the rows of a `metrics.jsonl`; a last line without its end, of a run still writing or killed, is left out.

    Raises:
        UserError: there is no such file, or a complete line is not a row.
    """
    try:
        lines = Path(path).read_bytes().split(b"\n")[:-1]
    except FileNotFoundError as error:
        raise UserError(f"{path}: no such file; expected the metrics of a run") from error
    rows = []
    for number, line in enumerate(lines, 1):
        try:
            row = json.loads(line)
        except ValueError as error:
            raise UserError(f"{path}: line {number} is not JSON: {line[:60]!r}; restore or remove the file") from error
        if not isinstance(row, dict) or any(name not in row for name in _REQUIRED):
            raise UserError(f"{path}: line {number} must be an object with {', '.join(_REQUIRED)}, got {line[:60]!r}")
        rows.append(row)
    return rows


def _find_tensorboard() -> tuple[Any, str]:
    """Return the writer class, or None, and a line that says which."""
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        status = f"TensorBoard is off, metrics.jsonl holds everything: {error}"
        logger.warning(status)
        return None, status
    return SummaryWriter, "TensorBoard is on"


def _checked_offset(path: Path, offset: int) -> int:
    """Return `offset` where it is the end of a line of the file at `path`, or 0."""
    if offset == 0:
        return 0
    size = path.stat().st_size if path.exists() else 0
    if offset > size:
        raise UserError(
            f"{path}: has {size} bytes, the checkpoint expects {offset}; restore it or start without --resume"
        )
    with open(path, "rb") as file:
        file.seek(offset - 1)
        if file.read(1) != b"\n":
            raise UserError(
                f"{path}: byte {offset} is not the end of a line; restore the file or start without --resume"
            )
    return offset


def _plain(value: Any) -> Any:
    if hasattr(value, "tolist"):
        return value.tolist()
    raise TypeError(f"metrics: a value must be one that JSON can hold, got {type(value).__name__}")


@contextlib.contextmanager
def _explained(path: Path) -> Any:
    try:
        yield
    except OSError as error:
        if explained := as_user_error(error, path):
            raise explained from error
        raise
