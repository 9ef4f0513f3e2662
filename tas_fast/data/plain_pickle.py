"""Reading pickles that hold plain data and byte arrays, without running anything that a pickle asks to run."""

from __future__ import annotations

import math
import os
import pickle
from pathlib import Path
from typing import Any

import numpy as np

from tas_fast.errors import UserError


class ByteArray:
    """Stands for a numpy array of uint8 while a pickle is read; `values` is the array, read-only."""

    def __init__(self, *_: object) -> None:
        self.values = np.empty(0, np.uint8)

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        _version, shape, dtype, fortran_order, content = state
        if not isinstance(dtype, _DType) or dtype.code not in ("u1", "|u1"):
            raise pickle.UnpicklingError("it holds an array of something else than bytes")
        raw = content.encode("latin1") if isinstance(content, str) else content
        if len(raw) != math.prod(shape):
            raise pickle.UnpicklingError("it holds an array that is cut short")
        self.values = np.frombuffer(raw, np.uint8).reshape(shape, order="F" if fortran_order else "C")


def load_plain(path: str | os.PathLike[str]) -> Any:
    """The content of a pickle made of dicts, lists, tuples, numbers, strings, bytes, and uint8 arrays (`ByteArray`).

    A pickle is a small program that may call any function it names. The five names that arrays and bytes need stand
    for harmless classes and functions of this file, never for numpy's own; any other name is refused before it is
    looked up. Python 2 strings are read as Latin-1.

    Raises:
        UserError: the pickle names something else, or is damaged; the message names the file.
    """
    with Path(path).open("rb") as file:
        try:
            return _PlainUnpickler(file, encoding="latin1").load()
        except MemoryError:
            raise
        except Exception as error:  # damaged pickles raise nearly anything: EOFError, ValueError, KeyError, ...
            raise UserError(f"{path} cannot be read ({str(error) or type(error).__name__}); unpack it again") from error


class _PlainUnpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in _KNOWN:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}, which plain data never do")
        return _KNOWN[module, name]


class _DType:
    def __init__(self, code: object, *_: object) -> None:
        self.code = code

    def __setstate__(self, state: object) -> None:
        """Byte order and alignment mean nothing for single bytes."""


def _encoded(text: str, codec: str) -> bytes:
    if codec != "latin1":
        raise pickle.UnpicklingError(f"it asks for the codec {codec}")
    return text.encode(codec)


_KNOWN: dict[tuple[str, str], Any] = {
    ("numpy.core.multiarray", "_reconstruct"): ByteArray,
    ("numpy._core.multiarray", "_reconstruct"): ByteArray,
    ("numpy", "ndarray"): ByteArray,
    ("numpy", "dtype"): _DType,
    ("_codecs", "encode"): _encoded,
}
