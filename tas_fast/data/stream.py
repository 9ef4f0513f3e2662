"""The loader for sets that do not fit in memory: torch's DataLoader reads files in worker processes."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler
from torchvision.transforms import v2

from tas_fast.data.augment import Augment, augment_pixels
from tas_fast.data.decode import fitted, read_rgb, to_pixels
from tas_fast.data.images import Files, Images
from tas_fast.data.loader import Loader, Options
from tas_fast.data.order import mix
from tas_fast.errors import UserError

_Key = tuple[int, int]  # position of an image, seed of its own random numbers


class StreamLoader(Loader):
    """Workers read, resize and colour; flips, crops, cutout and normalisation follow per batch on the device.

    Each image's random numbers come from (seed, split, epoch, place in the epoch), whichever worker has it: batches
    depend neither on `workers` nor on what was read before. Without resized_crop and color_jitter they equal those of
    `DeviceLoader` bit by bit.

    Raises:
        UserError: while iterating, when a file cannot be read or has another size than the first one.
    """

    def __init__(self, source: Images | Files, options: Options) -> None:
        super().__init__(source, options)
        self._targets = source.targets
        self._sampler = _EpochSampler()
        self._pool = DataLoader(
            _Reader(source, options.augment),
            batch_sampler=self._sampler,
            collate_fn=_as_it_is,
            num_workers=options.workers,
            pin_memory=options.device.type == "cuda",
            persistent_workers=options.workers > 0,
            # Its own, because DataLoader draws a number per epoch and must not move the global generator.
            generator=torch.Generator(),
        )

    def close(self) -> None:
        iterator, self._pool._iterator = self._pool._iterator, None
        if iterator is not None:
            iterator._shutdown_workers()  # type: ignore[attr-defined]

    def _batches(self, epoch: int, first: int) -> Iterator[tuple[Tensor, ...]]:
        options, orders, bounds = self._options, self._orders(epoch), self._bounds[first:]
        draws = [part.to(options.device) for part in self._draws(epoch)]
        seeds = [mix(options.seed, options.split, epoch, name, "image") for name in self._parts]
        self._sampler.start(orders, seeds, bounds)
        for (start, stop), read in zip(bounds, self._pool, strict=True):
            if isinstance(read, _Failure):
                raise UserError(read.message)
            pixels = read.to(options.device, non_blocking=True)
            batch: list[Tensor] = []
            for order, part_draws, part in zip(orders, draws, pixels.split(stop - start), strict=True):
                numbers = part_draws.part(start, stop)
                batch.append(self._finish(augment_pixels(part, numbers, options.augment), numbers))
                batch.append(self._targets[order[start:stop]].to(options.device))
            yield tuple(batch)


class _EpochSampler(Sampler[list[_Key]]):
    """Keys of the batches of one epoch; the parts of a search batch follow each other in one list."""

    def __init__(self) -> None:
        self.start([], [], [])

    def start(self, orders: list[Tensor], seeds: list[int], bounds: list[tuple[int, int]]) -> None:
        self._orders, self._seeds, self._bounds = [order.tolist() for order in orders], seeds, bounds

    def __iter__(self) -> Iterator[list[_Key]]:
        for start, stop in self._bounds:
            yield [
                (order[place], mix(seed, place))
                for order, seed in zip(self._orders, self._seeds, strict=True)
                for place in range(start, stop)
            ]


@dataclass(frozen=True)
class _Failure:
    """What went wrong in a worker; an exception would come back with the worker's traceback in its text."""

    message: str


class _Reader(Dataset[Tensor]):
    """Keys to pixels, uint8 [N, H, W, C]."""

    def __init__(self, source: Images | Files, augment: Augment) -> None:
        self._source = source
        steps: list[torch.nn.Module] = []
        if augment.resized_crop:
            steps.append(v2.RandomResizedCrop(source.size, scale=(augment.resized_crop, 1.0), antialias=True))
        if augment.color_jitter:
            strength = augment.color_jitter
            steps.append(v2.ColorJitter(brightness=strength, contrast=strength, saturation=strength))
        self._transform = v2.Compose(steps) if steps else None
        self._fit = not augment.resized_crop

    def __getitems__(self, keys: list[_Key]) -> Tensor | _Failure:
        if isinstance(self._source, Images) and self._transform is None:
            return self._source.pixels[torch.tensor([position for position, _ in keys])]
        try:
            return torch.stack([self._read(self._source, *key) for key in keys])
        except UserError as error:
            return _Failure(str(error))

    def _read(self, source: Images | Files, position: int, seed: int) -> Tensor:
        if isinstance(source, Images):
            return self._transformed(source.pixels[position].permute(2, 0, 1), seed).permute(1, 2, 0)
        path = source.paths[position]
        image = read_rgb(path)
        if self._fit:
            image = fitted(image, source, path)
        return to_pixels(self._transformed(image, seed))

    def _transformed(self, image: Any, seed: int) -> Any:
        if self._transform is None:
            return image
        # torch.manual_seed would reset the CUDA generators too, which the training uses.
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed)
            return self._transform(image)


def _as_it_is(read: Any) -> Any:
    return read
