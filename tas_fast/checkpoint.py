"""Checkpoints that survive being killed: written atomically, named by their checksum, read without running pickles.

`checkpoints/00000042-<first 16 hex digits of SHA-256>.pt` is an ordinary `torch.save` file of tensors and plain
values; the name tells whether its bytes are whole.
"""

from __future__ import annotations

import hashlib
import io
import logging
import pickle
import re
from pathlib import Path
from typing import Any

import torch

from tas_fast.errors import UserError
from tas_fast.files import write_atomic

log = logging.getLogger(__name__)
FORMAT_VERSION = 1
_NAME = re.compile(r"(\d{8})-([0-9a-f]{16})\.pt")


class CheckpointStore:
    """The last `keep` checkpoints of a run, numbered in the order they were written."""

    def __init__(self, folder: str | Path, keep: int = 3) -> None:
        self.folder = Path(folder)
        self.keep = keep

    def save(self, state: dict[str, Any]) -> Path:
        """Write `state` (tensors, numbers, text, and lists, tuples and dictionaries of them); returns the file."""
        buffer = io.BytesIO()
        torch.save({"format_version": FORMAT_VERSION, **state}, buffer)
        data = buffer.getvalue()
        files = self.files()
        number = _number(files[-1]) + 1 if files else 0
        path = self.folder / f"{number:08d}-{_checksum(data)}.pt"
        self.folder.mkdir(parents=True, exist_ok=True)
        write_atomic(path, data)
        for old in files[: len(files) + 1 - self.keep]:
            old.unlink(missing_ok=True)
        return path

    def load(self) -> dict[str, Any] | None:
        """Return the newest whole checkpoint, None when there is none; damaged ones are reported and passed over.

        Raises:
            UserError: there are checkpoints but none is whole.
        """
        files = self.files()
        for path in reversed(files):
            try:
                return read(path)
            except UserError as error:
                log.warning("%s; trying the previous checkpoint", error)
        if files:
            raise UserError(f"none of the {len(files)} checkpoints in {self.folder} can be read; start the run again")
        return None

    def files(self) -> list[Path]:
        """Return the checkpoints, oldest first."""
        if not self.folder.is_dir():
            return []
        return sorted(path for path in self.folder.iterdir() if _NAME.fullmatch(path.name))


def read(path: str | Path) -> dict[str, Any]:
    """Return the state in one checkpoint. Raises `UserError` when the file is damaged or of another version."""
    path = Path(path)
    try:
        data = path.read_bytes()
    except OSError as error:
        raise UserError(f"cannot read checkpoint {path}: {error.strerror}") from None
    match = _NAME.fullmatch(path.name)
    if match is None or match[2] != _checksum(data):
        raise UserError(f"checkpoint {path} is damaged: its checksum does not match its name")
    try:
        state = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    except (RuntimeError, EOFError, pickle.UnpicklingError) as error:
        raise UserError(f"checkpoint {path} holds more than tensors and plain values: {str(error)[:100]}") from None
    if not isinstance(state, dict) or state.get("format_version") != FORMAT_VERSION:
        raise UserError(f"checkpoint {path} is not of format_version {FORMAT_VERSION}, which this version reads")
    return state


def rng_state() -> dict[str, Any]:
    """Return the state of torch's global generators, CPU and every CUDA device."""
    return {"cpu": torch.get_rng_state(), "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else []}


def set_rng_state(state: dict[str, Any]) -> None:
    """Restore what `rng_state` returned."""
    torch.set_rng_state(state["cpu"])
    if state["cuda"]:
        torch.cuda.set_rng_state_all(state["cuda"])


def _checksum(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()[:16]


def _number(path: Path) -> int:
    return int(path.name[:8])
