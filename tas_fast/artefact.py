"""The result of a run as two files without pickle: `model.safetensors` (weights) and `architecture.json` (what to build around them)."""

from __future__ import annotations

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


def save(model: nn.Module, architecture: Architecture, folder: str | Path) -> None:
    """Write both files, after what they contain was rebuilt and gave the same outputs as `model`, bit for bit.

    Raises:
        UserError: the rebuilt network differs, or the files cannot be written. No file has changed then, or only whole ones.
    """
    data = safetensors.torch.save(_state(model))
    rebuilt = _rebuild(architecture, safetensors.torch.load(data), "the network to be saved")
    compare(model, rebuilt, architecture)
    folder = Path(folder)
    write_atomic(folder / WEIGHTS, data)
    architecture.to_json(folder / ARCHITECTURE)


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


def compare(model: nn.Module, other: nn.Module, architecture: Architecture) -> None:
    """Raise `UserError` unless both networks give the same outputs on random images, naming the largest difference."""
    generator = torch.Generator().manual_seed(0)
    size = architecture.image_size
    images = torch.randn(4, architecture.in_channels, size, size, generator=generator)
    outputs = [_outputs(network, images) for network in (model, other)]
    if not torch.equal(*outputs):
        worst = (outputs[0] - outputs[1]).abs().max().item()
        raise UserError(f"the saved network would differ from the trained one by {worst:.3g}; nothing was written")


@torch.no_grad()
def _outputs(model: nn.Module, images: Tensor) -> Tensor:
    parameter = next(model.parameters())
    training = model.training
    output = model.eval()(images.to(parameter.device)).float().cpu()
    model.train(training)
    return output


def _state(model: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.detach().cpu().contiguous() for name, tensor in model.state_dict().items()}


def _rebuild(architecture: Architecture, state: dict[str, Tensor], source: str) -> nn.Module:
    with torch.device("meta"):
        model = build(architecture.model, architecture.num_classes, architecture)
    expected = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    found = {name: tuple(tensor.shape) for name, tensor in state.items()}
    if expected != found:
        wrong = sorted(name for name in expected.keys() | found.keys() if expected.get(name) != found.get(name))
        name = wrong[0]
        raise UserError(
            f"{source} does not fit {architecture.model} in {len(wrong)} tensors, first {name}: "
            f"needs {expected.get(name, 'none')}, has {found.get(name, 'none')}"
        )
    model.load_state_dict(state, assign=True)
    return model
