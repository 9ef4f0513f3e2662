"""Configurations and search checkpoints of the original TAS code (AutoDL-Projects, `exps/TAS`).

A configuration is JSON whose values are `[type, value]` or `[type, [values]]` with everything written as text.
`xchannels` lists the image channels and then one width per convolution including pruned blocks; `xblocks` the blocks
kept in each stage.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

from torch import Tensor

from tas_fast.architecture import SKELETONS, Architecture, Skeleton
from tas_fast.errors import UserError

_TYPES: dict[str, Callable[[Any], Any]] = {
    "int": int,
    "float": float,
    "str": str,
    "bool": lambda text: bool(int(text)),
    "none": lambda _: None,
}
_CONVS = {False: ("conv_a", "conv_b"), True: ("conv_1x1", "conv_3x3", "conv_1x4")}


def read_config(path_or_dict: str | Path | dict[str, Any]) -> Architecture:
    """Return the architecture in a configuration file of the original code, or in its values as a dictionary.

    `infer-width` files keep all blocks, `infer-depth` files full widths, files without either describe the unpruned
    network.
    Raises `UserError` when the file is absent, not such a configuration, or of a network that tas_fast does not have.
    """
    if isinstance(path_or_dict, dict):
        source, raw = "configuration", path_or_dict
    else:
        source = str(path_or_dict)
        try:
            raw = json.loads(Path(path_or_dict).read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise UserError(f"cannot read configuration {source}: {error}") from None
        if not isinstance(raw, dict):
            raise UserError(f"{source} is not a configuration: expected a JSON object, got {type(raw).__name__}")
    values = {key: _value(source, key, value) for key, value in raw.items()}
    name = _model_name(source, values)
    if "class_num" not in values:
        raise UserError(f"{source} lacks class_num, the number of classes")
    channels = values.get("xchannels")
    return Architecture(
        name,
        values["class_num"],
        widths=None if channels is None else tuple(channels[1:]),  # type: ignore[arg-type]
        depths=None if values.get("xblocks") is None else tuple(values["xblocks"]),  # type: ignore[arg-type]
        in_channels=3 if channels is None else channels[0],
    )


class SearchableNetwork(Protocol):
    """What is needed of a supernet (`tas_fast.methods.tas.Supernet`)."""

    @property
    def skeleton(self) -> Skeleton: ...

    def block_names(self) -> list[str]: ...

    def state_dict(self) -> dict[str, Any]: ...


def load_search_state(supernet: SearchableNetwork, state_dict: dict[str, Tensor]) -> None:
    """Copy weights, running statistics and logits of an original search (its supernet's state dict) into `supernet`.

    `supernet` must be of the same network and search. Raises `UserError` naming the first tensor that does not fit;
    `supernet` may be partly filled then.
    """
    state = {key.removeprefix("module."): value for key, value in state_dict.items()}
    target = supernet.state_dict()
    bottleneck = supernet.skeleton.bottleneck
    filled: set[str] = set()
    for key, value in state.items():
        if re.search(r"(choices_tensor|num_batches_tracked)$", key):
            continue
        name, row = _our_name(key, bottleneck, supernet.block_names())
        if name not in target:
            raise UserError(f"search state has {key}, but this supernet has no {name}: another network or search?")
        place = target[name] if row is None else target[name][row, : value.numel()]
        if place.shape != value.shape:
            raise UserError(
                f"search state has {key} of shape {tuple(value.shape)}; this supernet needs {tuple(place.shape)}"
            )
        place.copy_(value)
        filled.add(name)
    missing = sorted(name for name in target if name not in filled and not _is_constant(name))
    if missing:
        raise UserError(
            f"search state lacks {len(missing)} tensors of this supernet, first {missing[0]}: "
            "another network or search?"
        )


def _value(source: str, key: str, value: Any) -> Any:
    """A plain value, or `[type, text]` / `[type, [texts]]` converted."""
    if not (isinstance(value, list) and len(value) == 2 and value[0] in _TYPES):
        return value
    convert = _TYPES[value[0]]
    try:
        return [convert(v) for v in value[1]] if isinstance(value[1], list) else convert(value[1])
    except (TypeError, ValueError):
        raise UserError(f"{source}: {key} = {value[1]!r} is not of type {value[0]}") from None


def _model_name(source: str, values: dict[str, Any]) -> str:
    """The original names CIFAR networks by depth, ImageNet networks by blocks per stage."""
    family = values.get("dataset", "cifar")
    if str(family).startswith("cifar"):
        name = f"resnet{values.get('depth')}"
    else:
        layers = tuple(values.get("layers") or ())
        bottleneck = "bottleneck" in str(values.get("block_name", values.get("block", ""))).lower()
        sought = ("imagenet", bottleneck, layers)
        matches = [s.name for s in SKELETONS.values() if (s.family, s.bottleneck, s.blocks) == sought]
        name = matches[0] if matches else f"ImageNet ResNet with layers {layers}"
    if name not in SKELETONS:
        raise UserError(f"{source} describes {name}; tas_fast has {', '.join(SKELETONS)}")
    return name


def _our_name(key: str, bottleneck: bool, blocks: list[str]) -> tuple[str, int | None]:
    """Map a tensor's name in the original state to ours and, for tensors of one width, its row."""
    plain = {"width_attentions": "width_logits", "depth_attentions": "depth_logits"}
    if key in plain:
        return plain[key], None
    if key.startswith("classifier."):
        return key, None
    match = re.fullmatch(
        r"layers\.(\d+)\.(?:(\w+?)\.)?(conv|bn|BNs\.(\d+))\.(weight|bias|running_mean|running_var)", key
    )
    if not match:
        raise UserError(f"search state has {key}, which is no tensor of the original's residual supernets")
    layer, unit, kind, row, tensor = int(match[1]), match[2], match[3], match[4], match[5]
    if layer > len(blocks):
        raise UserError(f"search state has {key}, but this supernet has only {len(blocks)} blocks")
    if unit is None:
        prefix = "stem"
    elif unit == "downsample":
        prefix = f"{blocks[layer - 1]}.shortcut"
    elif unit in _CONVS[bottleneck]:
        prefix = f"{blocks[layer - 1]}.convs.{_CONVS[bottleneck].index(unit)}"
    else:
        raise UserError(f"search state has {key}; this supernet's blocks have {', '.join(_CONVS[bottleneck])}")
    if kind == "conv":
        return f"{prefix}.conv_weight", None
    return f"{prefix}.{tensor}", int(row) if row else 0


def _is_constant(name: str) -> bool:
    """Buffers that no training changes; a projection without BatchNorm has none in the original."""
    return name.endswith("choices")
