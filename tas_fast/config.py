"""What a run is asked to do: frozen dataclasses, one per noun, whose fields carry their help; recipes are YAML of them.

Defaults here are the `quick` recipe's: a few minutes on two CPU cores with the embedded digits.
"""

from __future__ import annotations

import dataclasses
import types
import typing
from dataclasses import dataclass, field
from difflib import get_close_matches
from typing import Any

from tas_fast.errors import UsageError


def option(default: Any, help: str, *flags: str, choices: tuple[str, ...] | None = None) -> Any:
    """A field with help text; `flags` are its names on the command line (none: only in recipes and `--set`)."""
    return field(default=default, metadata={"help": help, "flags": flags, "choices": choices})


@dataclass(frozen=True)
class DataConfig:
    """Images and how they are read."""

    dataset: str = option("digits", "digits (embedded), cifar10, cifar100, imagenet, folder or synthetic", "--dataset")
    data_dir: str | None = option(None, "folder of the data set (not for digits and synthetic)", "--data-dir")
    image_size: int | None = option(None, "height and width in pixels; default: the data set's own", "--image-size")
    batch_size: int = option(64, "images per step; a search step uses this many twice", "-b", "--batch-size")
    loader: str = option("auto", "auto, device (decoded once, in memory) or torch (worker processes)", "--loader")
    workers: int = option(2, "decoding processes", "-j", "--workers")
    crop_padding: int | None = option(None, "pixels of padding before the random crop; default: the data set's")
    flip: bool | None = option(None, "random horizontal flip; default: the data set's")
    cutout: int | None = option(None, "side of the square that cutout erases in pixels; default: the data set's (off)")
    limit: int | None = option(None, "use at most so many images, classes evenly", "--limit")

    def __post_init__(self) -> None:
        _at_least(self, 2, "batch_size")  # BatchNorm
        _at_least(self, 0, "workers")
        for name in ("crop_padding", "cutout"):
            if getattr(self, name) is not None:
                _at_least(self, 0, name)


@dataclass(frozen=True)
class ModelConfig:
    """The network to make smaller."""

    name: str = option("resnet20", "resnet20|32|44|56|110|164 (CIFAR) or resnet18|34|50|101|152 (ImageNet)", "--model")


@dataclass(frozen=True)
class TasConfig:
    """The architecture search (TAS)."""

    search: str = option(
        "shape", "shape (widths and depths), width or depth", "--search", choices=("shape", "width", "depth")
    )
    target_macs: str = option(
        "0.5", "MACs to reach: a fraction of the unpruned network's (0.5), or an amount (40M, 1.2G)", "--target-macs"
    )
    epochs: int = option(40, "epochs of the search", "--epochs")
    num_fragments: int = option(2, "widths sampled per convolution (K, |I| in the paper)", "-k", "--num-fragments")
    lr: float = option(0.1, "learning rate of the weights (SGD, cosine)")
    momentum: float = option(0.9, "momentum of the weights")
    nesterov: bool = option(True, "Nesterov momentum for the weights")
    weight_decay: float = option(5e-4, "weight decay of the weights")
    warmup_epochs: int = option(0, "epochs of linear warm-up")
    clip_grad: float | None = option(
        None, "largest gradient norm of the search's weights; default: no clipping", "--clip-grad"
    )
    arch_lr: float = option(0.02, "learning rate of the logits (Adam, constant)")
    arch_beta1: float = option(0.5, "Adam's first beta for the logits")
    arch_weight_decay: float = option(1e-3, "weight decay of the logits")
    arch_warmup_epochs: int = option(0, "epochs before the logits move; 0 in the paper")
    tau_max: float = option(5.0, "temperature of the first epoch")
    tau_min: float = option(0.1, "temperature of the last epoch")
    tau_schedule: str = option("linear", "linear (paper) or cosine (released code)", choices=("linear", "cosine"))
    gumbel: bool = option(True, "Gumbel noise in the sampling; off: the ablation without it")
    macs_weight: float = option(2.0, "weight of the cost term (lambda_cost)")
    macs_loss: str = option(
        "paper", "paper: tolerance on both sides; released: only below the target", choices=("paper", "released")
    )
    tolerance: float = option(0.05, "t: of the target (paper) or of the unpruned network (released)")
    discrete_cost: str = option(
        "exact", "exact, or original: the released estimator, wrong after depth pruning", choices=("exact", "original")
    )
    derive: str = option(
        "target",
        "argmax (paper), or target: its least certain choices changed until the cost is within the tolerance",
        choices=("argmax", "target"),
    )
    relu_after_addition: bool = option(
        True, "ReLU after the residual addition; the paper's own results were searched without it"
    )
    unsampled_norms: str = option(
        "update",
        "BatchNorm rows not sampled in a step: update (decay and momentum act, as in 2019) or skip",
        choices=("update", "skip"),
    )

    def __post_init__(self) -> None:
        _positive(self, "epochs", "num_fragments", "lr", "arch_lr", "tau_max", "tau_min")
        _at_least(
            self,
            0,
            "warmup_epochs",
            "arch_warmup_epochs",
            "macs_weight",
            "tolerance",
            "weight_decay",
            "arch_weight_decay",
        )
        _fractions(self, "momentum", "arch_beta1")
        _positive_where_given(self, "clip_grad")
        _shorter(self, "warmup_epochs", "epochs")
        parse_target(self.target_macs)


@dataclass(frozen=True)
class TrainConfig:
    """Training of the teacher and of the derived network."""

    epochs: int = option(60, "epochs of the teacher and of the derived network", "--train-epochs")
    lr: float = option(0.1, "learning rate of the teacher and the derived network (SGD, cosine)", "--lr")
    momentum: float = option(0.9, "momentum")
    nesterov: bool = option(True, "Nesterov momentum")
    weight_decay: float = option(5e-4, "weight decay of the teacher and the derived network", "--weight-decay")
    warmup_epochs: int = option(0, "epochs of linear warm-up")
    label_smoothing: float = option(0.0, "label smoothing of the cross-entropy", "--label-smoothing")
    mixup_alpha: float = option(0.0, "mixup (torchvision); 0: off", "--mixup-alpha")
    ema_decay: float = option(
        0.0, "exponential moving average of the weights, which is then evaluated and saved; 0: off", "--ema-decay"
    )
    clip_grad: float | None = option(None, "largest gradient norm; default: no clipping")

    def __post_init__(self) -> None:
        _positive(self, "epochs", "lr")
        _at_least(self, 0, "warmup_epochs", "weight_decay", "mixup_alpha")
        _fractions(self, "label_smoothing", "ema_decay", "momentum")
        _positive_where_given(self, "clip_grad")
        _shorter(self, "warmup_epochs", "epochs")


@dataclass(frozen=True)
class DistillConfig:
    """Knowledge transfer from the unpruned network."""

    enabled: bool = option(
        True, "distil from the teacher; without, it is trained all the same, to compare with", "--distill"
    )
    teacher: str | None = option(None, "safetensors file of the unpruned network; default: train it", "--teacher")
    alpha: float = option(0.9, "weight of the soft term")
    temperature: float = option(4.0, "temperature of the soft targets")
    compare: bool = option(False, "also train the derived network without distillation", "--compare")

    def __post_init__(self) -> None:
        _positive(self, "temperature")
        if not 0 <= self.alpha <= 1:
            raise UsageError(f"alpha must be in [0, 1], got {self.alpha}")
        if self.compare and not self.enabled:
            raise UsageError("--compare compares with distillation, which --no-distill turns off; remove one of them")


@dataclass(frozen=True)
class RunConfig:
    """Device, precision, and where results go."""

    output: str = option("runs", "folder of all runs", "--output")
    experiment: str | None = option(
        None, "name of this run's folder; default: date, model and data set", "--experiment"
    )
    seed: int = option(0, "seed of everything random", "--seed")
    device: str = option("auto", "auto, cpu, cuda or cuda:N", "--device")
    amp: bool = option(False, "automatic mixed precision", "--amp")
    amp_dtype: str = option(
        "auto",
        "auto, bfloat16 or float16 (float16 only on CUDA)",
        "--amp-dtype",
        choices=("auto", "bfloat16", "float16"),
    )
    channels_last: bool = option(True, "channels_last memory format", "--channels-last")
    torchcompile: bool = option(
        False, "compile the teacher and the derived network with torch.compile", "--torchcompile"
    )
    max_steps: int | None = option(None, "end every epoch after this many steps", "--max-steps")
    checkpoint_seconds: float = option(10.0, "seconds between checkpoints; 0: after every step", "--checkpoint-seconds")
    checkpoint_history: int = option(3, "checkpoints kept", "--checkpoint-hist")

    def __post_init__(self) -> None:
        _at_least(self, 0, "checkpoint_seconds", "seed")
        _positive(self, "checkpoint_history")
        _positive_where_given(self, "max_steps")


@dataclass(frozen=True)
class Config:
    """One run of `python -m tas_fast.search`."""

    data: DataConfig = field(default_factory=DataConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    method: TasConfig = field(default_factory=TasConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    distill: DistillConfig = field(default_factory=DistillConfig)
    run: RunConfig = field(default_factory=RunConfig)

    def to_dict(self) -> dict[str, dict[str, Any]]:
        """Return nested plain values."""
        return dataclasses.asdict(self)

    def updated(self, values: dict[str, Any], source: str) -> Config:
        """Return a copy with `values` ({section: {field: value}}) replaced; `source` names their origin in errors."""
        sections = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        for section, entries in values.items():
            if section not in sections:
                raise UsageError(f"{source}: unknown section {section!r}{_nearest(section, sections)}")
            if not isinstance(entries, dict):
                raise UsageError(f"{source}: section {section} must hold fields, got {entries!r}")
            sections[section] = _replaced(sections[section], section, entries, source)
        return Config(**sections)


def _replaced(section: Any, name: str, entries: dict[str, Any], source: str) -> Any:
    hints = typing.get_type_hints(type(section))
    values = {}
    for key, value in entries.items():
        if key not in hints:
            raise UsageError(f"{source}: unknown field {name}.{key}{_nearest(key, hints)}")
        values[key] = converted(value, hints[key], f"{source}: {name}.{key}")
        choices = type(section).__dataclass_fields__[key].metadata["choices"]
        if choices and values[key] not in choices:
            raise UsageError(f"{source}: {name}.{key} must be one of {', '.join(choices)}, got {value!r}")
    return dataclasses.replace(section, **values)


def converted(value: Any, kind: Any, name: str) -> Any:
    """Return `value`, possibly text, as the type `kind` of a field. Raises `UsageError` with `name` otherwise."""
    if isinstance(kind, types.UnionType):
        if value is None or (isinstance(value, str) and value.lower() in ("none", "null")):
            return None
        kind = next(k for k in typing.get_args(kind) if k is not type(None))
    try:
        if kind is bool:
            if isinstance(value, str):
                return {"true": True, "false": False, "yes": True, "no": False, "1": True, "0": False}[value.lower()]
            if not isinstance(value, bool):
                raise ValueError
            return value
        if value is None or isinstance(value, bool | dict | list):
            raise ValueError
        if kind is int and isinstance(value, float):
            if not value.is_integer():
                raise ValueError
            return int(value)
        return kind(value)
    except (KeyError, ValueError, TypeError):
        words = {bool: "true or false", int: "a whole number", float: "a number", str: "text"}
        raise UsageError(f"{name} must be {words[kind]}, got {value!r}") from None


def parse_target(text: str) -> tuple[float | None, int | None]:
    """Return (ratio, None) for "0.5" and (None, MACs) for "40M". Raises `UsageError` for anything else."""
    units = {"K": 10**3, "M": 10**6, "G": 10**9}
    amount, unit = (text[:-1], units[text[-1].upper()]) if text and text[-1].upper() in units else (text, 0)
    try:
        value = float(amount)
    except ValueError:
        value = float("nan")
    if unit and 0 < value < float("inf"):
        return None, round(value * unit)
    if not unit and 0 < value <= 1:
        return value, None
    raise UsageError(f"target MACs must be a fraction in (0, 1] or an amount such as 40M or 1.2G, got {text!r}")


def _nearest(name: str, known: Any) -> str:
    matches = get_close_matches(name, list(known), n=2, cutoff=0.5)
    return f"; did you mean {' or '.join(matches)}?" if matches else f"; known are {', '.join(known)}"


def _positive(section: Any, *names: str) -> None:
    for name in names:
        if not getattr(section, name) > 0:
            raise UsageError(f"{name} must be greater than 0, got {getattr(section, name)}")


def _positive_where_given(section: Any, *names: str) -> None:
    _positive(section, *(name for name in names if getattr(section, name) is not None))


def _fractions(section: Any, *names: str) -> None:
    for name in names:
        if not 0 <= getattr(section, name) < 1:
            raise UsageError(f"{name} must be in [0, 1), got {getattr(section, name)}")


def _shorter(section: Any, part: str, whole: str) -> None:
    if getattr(section, part) >= getattr(section, whole):
        raise UsageError(f"{part} must be less than {whole} = {getattr(section, whole)}, got {getattr(section, part)}")


def _at_least(section: Any, limit: float, *names: str) -> None:
    for name in names:
        if not getattr(section, name) >= limit:
            raise UsageError(f"{name} must be at least {limit}, got {getattr(section, name)}")
