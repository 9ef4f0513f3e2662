"""The loader that keeps every image as uint8 on the device that trains."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple
from weakref import WeakValueDictionary

import torch
from torch import Tensor

from tas_fast.data.augment import Augment, Draws, augment_pixels, crop, crop_starts, expand
from tas_fast.data.decode import decode
from tas_fast.data.images import Files, Images
from tas_fast.data.loader import Loader, Options
from tas_fast.data.memory import check_memory
from tas_fast.errors import UsageError

# Up to here mirrored and bordered copies are kept; CIFAR takes 0.45 GiB. Above, each batch is expanded by itself.
EXPANDED_LIMIT = 2**30


def expanded_bytes(num_images: int, size: tuple[int, int], channels: int, augment: Augment) -> int:
    """Bytes of the expanded store of `num_images` images of `size` (H, W)."""
    height, width = size[0] + 2 * augment.crop_padding, size[1] + 2 * augment.crop_padding
    return num_images * height * width * channels * (2 if augment.flip else 1)


class Store:
    """Pixels uint8 [M, H, W, C], or the same expanded, and targets int64 [M] on a device; never written to."""

    def __init__(self, images: Images, augment: Augment, device: torch.device, *, expanded: bool) -> None:
        pixels = images.pixels.to(device)
        self.expanded = expanded
        self.pixels = expand(pixels, augment) if expanded else pixels
        self.targets = images.targets.to(device)


# Search and training on one data set share decoding and memory, for as long as one of their loaders lives.
_stores: WeakValueDictionary[tuple[object, ...], Store] = WeakValueDictionary()


def shared_store(source: Images | Files, augment: Augment, device: torch.device, workers: int) -> Store:
    """The store of `source` on `device`, decoded if no living loader has it.

    Raises:
        UserError: it does not fit in memory, or files cannot be decoded.
    """
    count = len(source.targets)
    key = (source.stamp, count, source.size, augment.crop_padding, augment.flip, device)
    store = _stores.get(key)
    if store is None:
        plain = expanded_bytes(count, source.size, source.channels, Augment())
        full = expanded_bytes(count, source.size, source.channels, augment)
        expanded = full <= EXPANDED_LIMIT
        what = f"{count} images of {source.size[1]}x{source.size[0]}"
        check_memory(plain + full if expanded else plain, device, what)
        images = decode(source, workers) if isinstance(source, Files) else source
        _stores[key] = store = Store(images, augment, device, expanded=expanded)
    return store


class _Plan(NamedTuple):
    """An epoch of one part, [n] each: where the images are (first pixel in an expanded store, else number), targets."""

    sources: Tensor
    targets: Tensor
    draws: Draws


class DeviceLoader(Loader):
    """Batches cut from a `Store` by a handful of operations on its device; an epoch's order is sent there once."""

    def __init__(self, source: Images | Files, options: Options) -> None:
        if options.augment.resized_crop or options.augment.color_jitter:
            raise UsageError("resized_crop and color_jitter work with --loader torch alone")
        super().__init__(source, options)
        self._store = shared_store(source, options.augment, options.device, options.workers)
        self._planned: tuple[int, list[_Plan]] | None = None

    def _batches(self, epoch: int, first: int) -> Iterator[tuple[Tensor, ...]]:
        plans = self._plans(epoch)
        for start, stop in self._bounds[first:]:
            yield tuple(tensor for plan in plans for tensor in self._batch(plan, start, stop))

    def _batch(self, plan: _Plan, start: int, stop: int) -> tuple[Tensor, Tensor]:
        sources, draws = plan.sources[start:stop], plan.draws.part(start, stop)
        if self._store.expanded:
            pixels = crop(self._store.pixels, sources, self.image_size)
        else:
            pixels = augment_pixels(self._store.pixels.index_select(0, sources), draws, self._options.augment)
        return self._finish(pixels, draws), plan.targets[start:stop]

    def _plans(self, epoch: int) -> list[_Plan]:
        if self._planned is None or self._planned[0] != epoch:
            pairs = zip(self._orders(epoch), self._draws(epoch), strict=True)
            self._planned = epoch, [self._plan(order, draws) for order, draws in pairs]
        return self._planned[1]

    def _plan(self, order: Tensor, draws: Draws) -> _Plan:
        store, device = self._store, self._options.device
        sources = crop_starts(order, draws, store.pixels.shape, self._options.augment) if store.expanded else order
        return _Plan(sources.to(device), store.targets[order.to(device)], draws.to(device))
