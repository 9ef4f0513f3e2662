"""What stages hand to each other: an unpruned network's `Skeleton`, a found `Architecture`, the layer `Plan` of both.

The plan is the single place that knows which convolutions a ResNet of given widths and depths consists of. Networks
are built from it, MACs and parameters are counted from it, so the three cannot disagree. Widths are numbers of output
channels of the convolutions on the main path, stem first, in execution order; depths are numbers of blocks kept in
each stage. Source of the shortcut rules: TAS (NeurIPS 2019) and its released code.
"""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from tas_fast.errors import UsageError, UserError
from tas_fast.files import write_atomic

FORMAT_VERSION = 1


@dataclass(frozen=True)
class Skeleton:
    """An unpruned residual network: family, block and number of blocks in each stage."""

    name: str
    family: str  # "cifar": 3x3 stem, 16 channels; "imagenet": 7x7 stem with max-pooling, 64 channels
    bottleneck: bool
    blocks: tuple[int, ...]

    @property
    def base_width(self) -> int:
        return 16 if self.family == "cifar" else 64

    @property
    def default_image_size(self) -> int:
        return 32 if self.family == "cifar" else 224

    @property
    def convs_per_block(self) -> int:
        return 3 if self.bottleneck else 2

    def block_widths(self, stage: int) -> tuple[int, ...]:
        """Full widths of the convolutions of one block of `stage`."""
        width = self.base_width * 2**stage
        return (width, width, 4 * width) if self.bottleneck else (width, width)

    def full_widths(self) -> tuple[int, ...]:
        """Full widths of all convolutions on the main path, stem first."""
        stages = (self.block_widths(stage) * count for stage, count in enumerate(self.blocks))
        return (self.base_width, *(width for stage in stages for width in stage))


def _skeletons() -> dict[str, Skeleton]:
    cifar = {f"resnet{6 * n + 2}": Skeleton(f"resnet{6 * n + 2}", "cifar", False, (n,) * 3) for n in (3, 5, 7, 9, 18)}
    cifar["resnet164"] = Skeleton("resnet164", "cifar", True, (18,) * 3)
    imagenet = {
        "resnet18": (False, (2, 2, 2, 2)),
        "resnet34": (False, (3, 4, 6, 3)),
        "resnet50": (True, (3, 4, 6, 3)),
        "resnet101": (True, (3, 4, 23, 3)),
        "resnet152": (True, (3, 8, 36, 3)),
    }
    return cifar | {name: Skeleton(name, "imagenet", *rest) for name, rest in imagenet.items()}


SKELETONS: dict[str, Skeleton] = _skeletons()


def find_skeleton(name: str) -> Skeleton:
    """Return the skeleton called `name`. Raises `UsageError` with the nearest known names otherwise."""
    if name not in SKELETONS:
        nearest = get_close_matches(name.lower().replace("-", ""), SKELETONS, n=3) or SKELETONS
        raise UsageError(f"unknown model {name!r}; did you mean {', '.join(nearest)}?")
    return SKELETONS[name]


@dataclass(frozen=True)
class Conv:
    """One convolution without bias, and what surrounds it."""

    in_channels: int
    out_channels: int
    kernel_size: int
    stride: int
    size: tuple[int, int]  # height and width of the output in pixels
    norm: bool = True
    average_pool: bool = False  # 2x2 average pooling before the convolution

    @property
    def padding(self) -> int:
        return self.kernel_size // 2

    @property
    def macs_per_channel_pair(self) -> int:
        """MACs for one input and one output channel."""
        return self.kernel_size**2 * self.size[0] * self.size[1]

    @property
    def macs(self) -> int:
        return self.macs_per_channel_pair * self.in_channels * self.out_channels

    @property
    def parameters(self) -> int:
        return self.kernel_size**2 * self.in_channels * self.out_channels + 2 * self.out_channels * self.norm


@dataclass(frozen=True)
class Block:
    """A residual block: its convolutions in order and the projection of its shortcut (None: identity)."""

    stage: int
    index: int  # within the stage
    convs: tuple[Conv, ...]
    shortcut: Conv | None


@dataclass(frozen=True)
class Plan:
    """All layers of a network; the classifier has `features` inputs."""

    family: str
    stem: Conv
    blocks: tuple[Block, ...]
    features: int
    num_classes: int

    @property
    def convs(self) -> tuple[Conv, ...]:
        """Every convolution, shortcuts included."""
        parts = ((*block.convs, block.shortcut) if block.shortcut else block.convs for block in self.blocks)
        return (self.stem, *(conv for part in parts for conv in part))


@dataclass(frozen=True)
class Architecture:
    """A network's widths and depths: the value a search returns and a smaller network is built from.

    Args:
        model: name of the unpruned network, one of `SKELETONS`.
        num_classes: outputs of the classifier.
        widths: channels of every convolution on the main path, stem first. Either of the kept blocks only or of all of
            the unpruned network (entries of pruned blocks are dropped). None: full widths.
        depths: blocks kept in each stage. None: all.
        in_channels: channels of the image.
        image_size: height and width of the image in pixels, or one number for both; None: 32 (CIFAR networks) or 224
            (ImageNet networks).

    Raises:
        UsageError: unknown model; wrong number of widths or depths; values below 1, depths above full, widths above
            twice full.
    """

    model: str
    num_classes: int
    widths: tuple[int, ...] = None  # type: ignore[assignment]  # filled below
    depths: tuple[int, ...] = None  # type: ignore[assignment]
    in_channels: int = 3
    image_size: tuple[int, int] = None  # type: ignore[assignment]

    def __post_init__(self) -> None:
        skeleton = find_skeleton(self.model)
        depths = skeleton.blocks if self.depths is None else tuple(int(d) for d in self.depths)
        _check_depths(self.model, depths, skeleton.blocks)
        widths = skeleton.full_widths() if self.widths is None else tuple(int(w) for w in self.widths)
        full = keep_blocks(skeleton, skeleton.full_widths(), depths)
        if len(widths) == len(skeleton.full_widths()):
            widths = keep_blocks(skeleton, widths, depths)
        _check_widths(self.model, widths, full)
        size: Any = skeleton.default_image_size if self.image_size is None else self.image_size
        image_size = (size, size) if isinstance(size, int) else tuple(size)
        for name, value in (
            ("num_classes", self.num_classes),
            ("in_channels", self.in_channels),
            ("image_size", min(image_size)),
        ):
            if value < 1:
                raise UsageError(f"architecture of {self.model}: {name} must be at least 1, got {value}")
        for name, normalised in (("widths", widths), ("depths", depths), ("image_size", image_size)):
            object.__setattr__(self, name, normalised)

    @property
    def skeleton(self) -> Skeleton:
        return find_skeleton(self.model)

    @property
    def has_full_widths(self) -> bool:
        """Whether every kept convolution is as wide as in the unpruned network."""
        return self.widths == keep_blocks(self.skeleton, self.skeleton.full_widths(), self.depths)

    def plan(self) -> Plan:
        """Return every layer with its channels and output size."""
        return _plan(self)

    def macs(self) -> int:
        """Multiply-accumulates of one image: convolutions and the classifier with its bias."""
        plan = self.plan()
        return sum(conv.macs for conv in plan.convs) + (plan.features + 1) * plan.num_classes

    def parameters(self) -> int:
        """Number of trainable parameters."""
        plan = self.plan()
        return sum(conv.parameters for conv in plan.convs) + (plan.features + 1) * plan.num_classes

    def to_dict(self) -> dict[str, Any]:
        """Return plain values; `from_dict` restores the architecture."""
        return {"format_version": FORMAT_VERSION, **dataclasses.asdict(self)}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Architecture:
        """Return the architecture that `to_dict` described. Raises `UserError` for anything else."""
        if not isinstance(values, dict):
            raise UserError(f"an architecture must be a JSON object, got {type(values).__name__}")
        values = dict(values)
        version = values.pop("format_version", None)
        if version != FORMAT_VERSION:
            raise UserError(
                f"architecture has format_version {version!r}; this version of tas_fast reads {FORMAT_VERSION}"
            )
        known = {field.name for field in dataclasses.fields(cls)}
        if set(values) != known:
            missing, extra = sorted(known - set(values)), sorted(set(values) - known)
            raise UserError(f"architecture lacks {missing} and has unknown {extra}; expected {sorted(known)}")
        for name in ("widths", "depths", "image_size"):
            if not isinstance(values[name], list | tuple) or not all(type(v) is int for v in values[name]):
                raise UserError(f"architecture: {name} must be a list of integers, got {str(values[name])[:80]}")
        if len(values["image_size"]) != 2:
            raise UserError(f"architecture: image_size must be [height, width], got {str(values['image_size'])[:80]}")
        for name in ("num_classes", "in_channels"):
            if type(values[name]) is not int:
                raise UserError(f"architecture: {name} must be an integer, got {values[name]!r}")
        return cls(**values)

    def to_json(self, path: str | Path) -> None:
        """Write the architecture to `path` atomically."""
        write_atomic(path, json.dumps(self.to_dict(), indent=2) + "\n")

    @classmethod
    def from_json(cls, path: str | Path) -> Architecture:
        """Return the architecture stored in `path`. Raises `UserError` when there is none."""
        try:
            text = Path(path).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(f"cannot read architecture {path}: {error}") from None
        try:
            return cls.from_dict(json.loads(text))
        except json.JSONDecodeError as error:
            raise UserError(f"{path} is not an architecture: invalid JSON ({error})") from None
        except UserError as error:
            raise UserError(f"{path}: {error}") from None


def keep_blocks(skeleton: Skeleton, widths: tuple[int, ...], depths: tuple[int, ...]) -> tuple[int, ...]:
    """Return the entries of `widths` (one for every convolution of the unpruned network) that belong to kept blocks."""
    kept, position = [widths[0]], 1
    for count, depth in zip(skeleton.blocks, depths, strict=True):
        kept += widths[position : position + depth * skeleton.convs_per_block]
        position += count * skeleton.convs_per_block
    return tuple(kept)


def _check_depths(model: str, depths: tuple[int, ...], blocks: tuple[int, ...]) -> None:
    if len(depths) != len(blocks) or not all(1 <= depth <= count for depth, count in zip(depths, blocks, strict=True)):
        raise UsageError(
            f"{model}: depths must be {len(blocks)} numbers of blocks between 1 and {list(blocks)}, got {list(depths)}"
        )


def _check_widths(model: str, widths: tuple[int, ...], full: tuple[int, ...]) -> None:
    if len(widths) != len(full):
        raise UsageError(
            f"{model}: widths must have one entry for each of its {len(full)} convolutions, got {len(widths)}"
        )
    # A published ResNet-50 has 70 channels where the unpruned one has 64, so a little more than full is accepted.
    wrong = [i for i, (width, limit) in enumerate(zip(widths, full, strict=True)) if not 1 <= width <= 2 * limit]
    if wrong:
        i = wrong[0]
        raise UsageError(f"{model}: width of convolution {i} must be between 1 and {2 * full[i]}, got {widths[i]}")


def _plan(architecture: Architecture) -> Plan:
    skeleton, widths = architecture.skeleton, iter(architecture.widths)
    imagenet, size = skeleton.family == "imagenet", architecture.image_size
    if imagenet:
        size = _half(size)
        stem = Conv(architecture.in_channels, next(widths), 7, 2, size)
        size = _half(size)
    else:
        stem = Conv(architecture.in_channels, next(widths), 3, 1, size)
    channels, blocks = stem.out_channels, []
    for stage, depth in enumerate(architecture.depths):
        for index in range(depth):
            stride = 2 if stage > 0 and index == 0 else 1
            in_size, size = size, _half(size) if stride == 2 else size
            outs = tuple(next(widths) for _ in range(skeleton.convs_per_block))
            convs = _block_convs(skeleton.bottleneck, channels, outs, stride, in_size, size)
            shortcut = None
            if stride == 2 or channels != outs[-1]:
                norm = _shortcut_norm(architecture, stage, index, stride)
                shortcut = Conv(channels, outs[-1], 1, 1, size, norm=norm, average_pool=stride == 2)
            blocks.append(Block(stage, index, convs, shortcut))
            channels = outs[-1]
    return Plan(skeleton.family, stem, tuple(blocks), channels, architecture.num_classes)


def _block_convs(
    bottleneck: bool, channels: int, outs: tuple[int, ...], stride: int, in_size: tuple[int, int], size: tuple[int, int]
) -> tuple[Conv, ...]:
    if not bottleneck:
        return (Conv(channels, outs[0], 3, stride, size), Conv(outs[0], outs[1], 3, 1, size))
    return (
        Conv(channels, outs[0], 1, 1, in_size),
        Conv(outs[0], outs[1], 3, stride, size),
        Conv(outs[1], outs[2], 1, 1, size),
    )


def _shortcut_norm(architecture: Architecture, stage: int, index: int, stride: int) -> bool:
    """Whether a projection is normalised: not at stride 2 in CIFAR networks, nor in their pruned bottlenecks."""
    if architecture.skeleton.family == "imagenet":
        return True
    return stride == 1 and (not architecture.skeleton.bottleneck or architecture.has_full_widths)


def _half(size: tuple[int, int]) -> tuple[int, int]:
    """Output size of a convolution with stride 2 and half-kernel padding, and of 2x2 pooling that rounds up."""
    return (size[0] + 1) // 2, (size[1] + 1) // 2
