"""What TAS may choose from: widths of every convolution, depths of every stage (paper 4.1, lists as released)."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

from tas_fast.architecture import Architecture, Skeleton, find_skeleton
from tas_fast.errors import UsageError

WIDTH_RATIOS = (0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)
SEARCHES = ("shape", "width", "depth")


def width_candidates(width: int) -> tuple[int, ...]:
    """Return the ascending candidate widths of a convolution with `width` channels: truncated float64 products.

    Example:
        >>> width_candidates(16)
        (4, 6, 8, 9, 11, 12, 14, 16)
    """
    return tuple(sorted({max(1, int(width * ratio)) for ratio in WIDTH_RATIOS}))


def depth_candidates(skeleton: Skeleton) -> tuple[tuple[int, ...], ...]:
    """Return the candidate numbers of blocks of each stage; every stage has equally many."""
    if skeleton.family == "cifar":
        return tuple(_cifar_depths(count) for count in skeleton.blocks)
    smallest = min(skeleton.blocks)
    return tuple(tuple(count * j // smallest for j in range(1, smallest + 1)) for count in skeleton.blocks)


def _cifar_depths(count: int) -> tuple[int, ...]:
    return tuple(range(1, count + 1)) if count <= 3 else tuple(sorted({*range(1, count + 1, 2), count}))


@dataclass(frozen=True)
class SearchSpace:
    """The candidates of a search over "shape" (widths and depths), "width" or "depth"; the rest has full size."""

    model: str
    num_classes: int
    search: str = "shape"
    in_channels: int = 3
    image_size: int | tuple[int, int] | None = None

    def __post_init__(self) -> None:
        if self.search not in SEARCHES:
            raise UsageError(f"search must be one of {', '.join(SEARCHES)}, got {self.search!r}")
        find_skeleton(self.model)

    @cached_property
    def skeleton(self) -> Skeleton:
        return find_skeleton(self.model)

    @cached_property
    def unpruned(self) -> Architecture:
        return self.derive(self.skeleton.full_widths(), self.skeleton.blocks)

    @cached_property
    def widths(self) -> tuple[tuple[int, ...], ...]:
        """Candidates of each of the L convolutions on the main path."""
        searched = self.search != "depth"
        return tuple(width_candidates(width) if searched else (width,) for width in self.skeleton.full_widths())

    @cached_property
    def depths(self) -> tuple[tuple[int, ...], ...]:
        """Candidates of each of the S stages."""
        if self.search == "width":
            return tuple((count,) for count in self.skeleton.blocks)
        return depth_candidates(self.skeleton)

    def derive(self, widths: tuple[int, ...], depths: tuple[int, ...]) -> Architecture:
        """Return the architecture with these widths (of all convolutions) and depths."""
        return Architecture(
            self.model,
            self.num_classes,
            widths,
            depths,
            self.in_channels,
            self.image_size,  # type: ignore[arg-type]
        )

    def smallest(self) -> Architecture:
        """Return the architecture with the narrowest widths and the smallest depths."""
        return self.derive(tuple(row[0] for row in self.widths), tuple(row[0] for row in self.depths))
