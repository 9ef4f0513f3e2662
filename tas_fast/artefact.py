"""The result of a run as two files without pickle: `model.safetensors`, and `architecture.json` to build around it."""

from __future__ import annotations

import copy
import os
import tempfile
from pathlib import Path

import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn

from tas_fast.architecture import Architecture
from tas_fast.errors import UserError
from tas_fast.files import write_atomic
from tas_fast.models import build

WEIGHTS, ARCHITECTURE = "model.safetensors", "architecture.json"


def save(model: nn.Module, architecture: Architecture, folder: str | Path, weights: str = WEIGHTS) -> None:
    """Write both files, after what was read back from the disk gave the same outputs as `model`, bit for bit.

    Args:
        model: the network that `architecture` describes, on any device.
        architecture: goes to `architecture.json`.
        folder: existing folder.
        weights: name of the file of weights.

    Raises:
        UserError: the rebuilt network differs (nothing is written then), or a file cannot be written (each is whole).
    """
    folder = Path(folder)
    with tempfile.TemporaryDirectory(prefix=".unverified-", dir=folder) as name:
        draft = Path(name)
        write_atomic(draft / weights, safetensors.torch.save(_state(model)))
        architecture.to_json(draft / ARCHITECTURE)
        compare(model, load(draft, draft / weights), architecture)
        for file in (weights, ARCHITECTURE):
            os.replace(draft / file, folder / file)


def load(folder: str | Path, weights: str | Path | None = None) -> nn.Module:
    """Return the network saved in `folder`, in evaluation mode on the CPU.

    Args:
        folder: a run's folder, or any folder with `architecture.json` and `model.safetensors`.
        weights: another safetensors file of the same architecture.

    Raises:
        UserError: a file is absent, damaged, or does not fit the architecture.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise UserError(f"{folder} is not a folder; give a run's folder with {ARCHITECTURE} and {WEIGHTS}")
    path = folder / WEIGHTS if weights is None else Path(weights)
    return _rebuild(Architecture.from_json(folder / ARCHITECTURE), read_weights(path), str(path)).eval()


def read_weights(path: str | Path) -> dict[str, Tensor]:
    """Return the tensors of a safetensors file. Raises `UserError` when it is absent or damaged."""
    try:
        return safetensors.torch.load_file(path)
    except (OSError, safetensors.SafetensorError) as error:
        raise UserError(f"cannot read weights {path}: {error}") from None


def save_weights(model: nn.Module, path: str | Path) -> None:
    """Write the parameters and buffers of `model` to a safetensors file, atomically."""
    write_atomic(path, safetensors.torch.save(_state(model)))


def load_weights(model: nn.Module, path: str | Path) -> None:
    """Copy the tensors of a safetensors file into `model`. Raises `UserError` when they are not exactly its own."""
    state = read_weights(path)
    _check_fit(model, state, str(path))
    model.load_state_dict(state)


def compare(model: nn.Module, other: nn.Module, architecture: Architecture) -> None:
    """Raise `UserError` unless both networks give the same outputs on random images, naming tensor and difference."""
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(4, architecture.in_channels, *architecture.image_size, generator=generator)
    outputs = [_outputs(network, images) for network in (model, other)]
    if not torch.equal(*outputs):
        worst = (outputs[0] - outputs[1]).abs().max().item()
        theirs = other.state_dict()
        wrong = [name for name, tensor in _state(model).items() if not torch.equal(tensor, theirs[name].cpu())]
        place = f"first in {wrong[0]}" if wrong else "though all tensors are equal"
        raise UserError(
            f"the saved network would differ from the trained one by {worst:.3g}, {place}; nothing was written"
        )


@torch.no_grad()
def _outputs(model: nn.Module, images: Tensor) -> Tensor:
    # Both networks run on the CPU in one memory layout, so equal weights give equal bits.
    twin = copy.deepcopy(model).cpu().to(memory_format=torch.contiguous_format)
    return twin.eval()(images)


def _state(model: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.detach().cpu().contiguous() for name, tensor in model.state_dict().items()}


def _rebuild(architecture: Architecture, state: dict[str, Tensor], source: str) -> nn.Module:
    with torch.device("meta"):
        model = build(architecture.model, architecture.num_classes, architecture)
    _check_fit(model, state, source)
    model.load_state_dict(state, assign=True)
    return model


def _check_fit(model: nn.Module, state: dict[str, Tensor], source: str) -> None:
    expected = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    found = {name: tuple(tensor.shape) for name, tensor in state.items()}
    wrong = sorted(name for name in expected.keys() | found.keys() if expected.get(name) != found.get(name))
    if wrong:
        needed, has = (shapes.get(wrong[0], "none") for shapes in (expected, found))
        raise UserError(
            f"{source} does not fit the network in {len(wrong)} tensors, first {wrong[0]}: needs {needed}, has {has}"
        )
