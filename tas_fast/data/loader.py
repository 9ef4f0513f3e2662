"""What every loader has in common: sizes, halves, position, order of an epoch."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from tas_fast.data.augment import Augment, Draws, Finish, draw
from tas_fast.data.images import Files, Images
from tas_fast.data.order import batch_bounds, generator, stratified_halves
from tas_fast.errors import UsageError, UserError


@dataclass(frozen=True)
class Options:
    """How batches are made; the fields are the arguments of `build_loader`, resolved."""

    split: str
    batch_size: int
    device: torch.device
    workers: int
    seed: int
    augment: Augment
    channels_last: bool
    dtype: torch.dtype
    drop_last: bool


class Loader(ABC):
    """Iterable over the batches of an epoch, from the stored position on.

    Splits "train" and "test" give (images [N, C, H, W], targets int64 [N]); "search" gives (images, targets) of the
    weight half followed by (images, targets) of the architecture half.

    The position (`epoch`, `batch`) moves when a batch is handed out; with the last batch it becomes the start of the
    following epoch. Breaking off leaves it where it is, except for "test", which then starts over. One iteration at
    a time: two at once would share the position.

    Attributes: `num_classes`, `in_channels`, `image_size` (H, W), `classes` (names), `num_images` (search: both
    halves), `mean`, `std` (per channel, for pixels in 0..1), `halves` ({"weight": [...], "architecture": [...]},
    numbers in the whole training set; None unless "search"), `epoch`, `batch`.

    Raises:
        UsageError: the batch size exceeds the number of images to train on, or a half would be empty.
    """

    def __init__(self, source: Images | Files, options: Options) -> None:
        self.num_images = len(source.targets)
        self.classes, self.num_classes = source.classes, len(source.classes)
        self.in_channels, self.image_size = source.channels, source.size
        self.mean, self.std = source.mean, source.std
        self.epoch = self.batch = 0
        self.halves: dict[str, list[int]] | None = None
        self._options = options
        self._parts = {options.split: torch.arange(self.num_images)}
        if options.split == "search":
            weight, architecture = stratified_halves(source.targets, options.seed)
            self._parts = {"weight": weight, "architecture": architecture}
            self.halves = {name: source.ids[part].tolist() for name, part in self._parts.items()}
        self._images_per_epoch = len(next(iter(self._parts.values())))
        self._check_sizes()
        self._bounds = batch_bounds(
            self._images_per_epoch,
            options.batch_size,
            drop_last=options.drop_last,
            merge_single=options.split != "test",
        )
        self._finish = Finish(
            source.mean,
            source.std,
            self.image_size[1],
            cutout=options.augment.cutout,
            device=options.device,
            dtype=options.dtype,
            channels_last=options.channels_last,
        )

    def __len__(self) -> int:
        """Batches per epoch."""
        return len(self._bounds)

    def __iter__(self) -> Iterator[tuple[Tensor, ...]]:
        epoch = self.epoch
        try:
            for number, batch in enumerate(self._batches(epoch, self.batch), self.batch + 1):
                self.epoch, self.batch = (epoch, number) if number < len(self) else (epoch + 1, 0)
                yield batch
        finally:
            if self._options.split == "test":
                self.batch = 0

    def set_epoch(self, epoch: int) -> None:
        """Goes to the start of `epoch`; keeps the position where that epoch is the current one (after a resume)."""
        if epoch != self.epoch:
            self.epoch, self.batch = epoch, 0

    def state_dict(self) -> dict[str, int]:
        """The position: the next batch handed out is `batch` of `epoch`, in the order that belongs to `seed`."""
        return {"epoch": self.epoch, "batch": self.batch, "seed": self._options.seed}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Continues at a position of `state_dict`.

        Raises:
            UserError: the position belongs to another seed, or lies beyond the epoch (other data or batch size).
        """
        if state["seed"] != self._options.seed:
            raise UserError(
                f"the saved data position belongs to seed {state['seed']}, this run has {self._options.seed}; "
                f"resume with --seed {state['seed']}"
            )
        if not 0 <= state["batch"] < len(self):
            raise UserError(
                f"the saved data position is batch {state['batch']}, an epoch has {len(self)} batches; "
                "resume with the batch size and the data of the saved run"
            )
        self.epoch, self.batch = state["epoch"], state["batch"]

    def close(self) -> None:  # noqa: B027
        """Ends worker processes, if there are any; iterating again starts them anew."""

    @abstractmethod
    def _batches(self, epoch: int, first: int) -> Iterator[tuple[Tensor, ...]]:
        """The batches first, first + 1, ... of `epoch`."""

    def _orders(self, epoch: int) -> list[Tensor]:
        """Image positions of the epoch, int64, one list per part and all of the same length."""
        if self._options.split == "test":
            return list(self._parts.values())
        orders = [
            part[torch.randperm(len(part), generator=self._rng(epoch, name))] for name, part in self._parts.items()
        ]
        # The architecture half may be one image shorter: its first image of the epoch then closes it as well.
        return [torch.cat([order, order])[: self._images_per_epoch] for order in orders]

    def _draws(self, epoch: int) -> list[Draws]:
        """The epoch's random numbers for augmentation, one set per part, by place in the epoch."""
        options = self._options
        return [
            draw(self._images_per_epoch, options.augment, self.image_size, self._rng(epoch, name, "augment"))
            for name in self._parts
        ]

    def _rng(self, epoch: int, *purpose: str) -> torch.Generator:
        return generator(self._options.seed, self._options.split, epoch, *purpose)

    def _check_sizes(self) -> None:
        options, available = self._options, self._images_per_epoch
        if self.halves is not None and not self.halves["architecture"]:
            raise UsageError(f"a search splits the training set into two halves, it has {self.num_images} image")
        if options.batch_size > available and (options.split != "test" or options.drop_last):
            what = "weight half of the training set" if self.halves else f"{options.split} set"
            raise UsageError(
                f"batch size {options.batch_size} is larger than the {what}, which has {available} images; "
                f"choose --batch-size {available} or less"
            )
