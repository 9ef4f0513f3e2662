"""Numbers recorded from the original TAS code; tests that need them skip where the recordings are absent."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

FOLDER = Path(__file__).resolve().parents[2] / "shared" / "golden"


def load_golden(name: str) -> dict[str, Tensor]:
    """Return the arrays of `<name>.npz` as tensors."""
    with np.load(_path(f"{name}.npz")) as arrays:
        return {key: torch.from_numpy(arrays[key]) for key in arrays.files}


def load_golden_json(name: str) -> Any:
    return json.loads(_path(f"{name}.json").read_text())


def _path(file: str) -> Path:
    if not FOLDER.exists():
        pytest.skip("the recorded numbers are not here")
    return FOLDER / file
