"""The result of a run as a value: what `report.json` holds and the table that is printed at the end.

Accuracies are percent, MACs are multiply-accumulates of one image, times are seconds. None stands for what a
run did not do (no teacher, no distillation) or has not reached yet.
"""

from __future__ import annotations

import dataclasses
import types
import typing
from dataclasses import dataclass
from typing import Any

from tas_fast.errors import UserError
from tas_fast.report import table


@dataclass(frozen=True)
class Unpruned:
    """The network the search started from. `accuracy` is None where it was neither trained nor loaded."""

    accuracy: float | None
    macs: int
    parameters: int


@dataclass(frozen=True)
class Pruned:
    """The network found. `macs_ratio` is the share of MACs that remains, `sparsity` the share of parameters removed.

    `accuracy_without_distillation` is that of the same network trained without a teacher for comparison.
    """

    accuracy: float | None
    accuracy_without_distillation: float | None
    macs: int
    macs_ratio: float
    parameters: int
    sparsity: float


@dataclass(frozen=True)
class Seconds:
    """Wall-clock time of each phase, None for phases that did not run; `total` includes everything else."""

    teacher: float | None
    search: float | None
    distill: float | None
    total: float


@dataclass(frozen=True)
class Report:
    """A run's result.

    Args:
        target: `{"macs": int, "ratio": float, "reached": bool}`, the ratio being that of the unpruned MACs.
        pruned: None before a network is derived.
        search_step_ms: median of one weight step and one architecture step.
        images_per_second: training images during the search.
        notes: sentences a reader must see (fallbacks, missed targets).
    """

    command: str
    version: str
    device: str
    backend: str
    seed: int
    dataset: str
    model: str
    method: str
    target: dict[str, Any]
    unpruned: Unpruned
    pruned: Pruned | None
    seconds: Seconds
    search_step_ms: float | None
    images_per_second: float | None
    notes: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Return plain values that `json` can write; `from_dict` restores the report."""
        return {**dataclasses.asdict(self), "notes": list(self.notes)}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Report:
        """Return the report that `values` came from. Raises `UserError` on unknown, missing or mistyped fields."""
        return _restore(cls, values, "report")

    def summary_table(self) -> str:
        """Return the run as a plain-text table: ASCII, no newline at the end."""
        return table.summary_table(self)


def _restore(cls: type, values: Any, place: str) -> Any:
    if not isinstance(values, dict):
        raise UserError(f"{place} must be a JSON object, got {type(values).__name__}")
    fields = {field.name: field for field in dataclasses.fields(cls)}
    unknown = sorted(str(name) for name in values.keys() - fields.keys())
    missing = [name for name, f in fields.items() if name not in values and f.default is dataclasses.MISSING]
    if unknown or missing:
        raise UserError(f"{place} has unknown fields {unknown} and lacks {missing}; expected {list(fields)}")
    hints = typing.get_type_hints(cls)
    return cls(**{name: _convert(hints[name], value, f"{place}.{name}") for name, value in values.items()})


def _convert(hint: Any, value: Any, place: str) -> Any:
    options = typing.get_args(hint) if isinstance(hint, types.UnionType) else (hint,)
    if value is None and type(None) in options:
        return None
    kind = options[0]
    if dataclasses.is_dataclass(kind):
        return _restore(typing.cast(type, kind), value, place)
    if kind is float and type(value) is int:
        return float(value)
    if hint == tuple[str, ...]:
        if isinstance(value, list | tuple) and all(isinstance(item, str) for item in value):
            return tuple(value)
        raise UserError(f"{place} must be a list of strings, got {str(value)[:80]}")
    kind = typing.get_origin(kind) or kind
    if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
        raise UserError(f"{place} must be {kind.__name__}, got {str(value)[:80]!r}")
    return _check_target(value, place) if kind is dict else value


def _check_target(target: dict[str, Any], place: str) -> dict[str, Any]:
    kinds = {"macs": int, "ratio": float, "reached": bool}
    if target.keys() != kinds.keys():
        raise UserError(f"{place} must have the fields {list(kinds)}, got {sorted(map(str, target))}")
    return {name: _convert(kind, target[name], f"{place}.{name}") for name, kind in kinds.items()}
