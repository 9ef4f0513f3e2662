"""Which image comes when: pure functions of (seed, split, epoch), so that a position is all a checkpoint needs."""

from __future__ import annotations

import hashlib

import torch
from torch import Tensor


def mix(*parts: object) -> int:
    """A 63-bit number that depends on every part; neighbouring seeds and epochs give unrelated numbers."""
    digest = hashlib.blake2b("/".join(map(str, parts)).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


def generator(*parts: object) -> torch.Generator:
    """A CPU generator seeded with `mix(*parts)`; drawing on the CPU makes every device see the same numbers."""
    return torch.Generator().manual_seed(mix(*parts))


def shuffled(positions: list[int], *key: object) -> list[int]:
    """`positions` in an order fixed by `key` alone: by hash, hence the same in every version of torch."""
    return sorted(positions, key=lambda position: mix(*key, position))


def by_class(targets: Tensor) -> list[list[int]]:
    """For each class that occurs, in ascending order, the positions of its images in `targets` [M]."""
    members: dict[int, list[int]] = {}
    for position, target in enumerate(targets.tolist()):
        members.setdefault(target, []).append(position)
    return [members[target] for target in sorted(members)]


def stratified_halves(targets: Tensor, seed: int) -> tuple[Tensor, Tensor]:
    """Two disjoint, ascending int64 lists of positions that together are all of `targets` [M].

    Within each class the two differ by at most one image, and so do their lengths (the first is never the shorter):
    the odd image of a class goes to the first and the second half by turns.
    """
    halves: tuple[list[int], list[int]] = ([], [])
    odd_classes = 0
    for members in by_class(targets):
        order = shuffled(members, "halves", seed)
        middle = len(order) // 2
        halves[0].extend(order[:middle])
        halves[1].extend(order[middle : 2 * middle])
        if len(order) % 2:
            halves[odd_classes % 2].append(order[-1])
            odd_classes += 1
    return torch.tensor(sorted(halves[0]), dtype=torch.int64), torch.tensor(sorted(halves[1]), dtype=torch.int64)


def balanced_subset(targets: Tensor, limit: int) -> Tensor:
    """Ascending positions of at most `limit` images: the first of every class, then the second of every class, ..."""
    ranked = [(rank, position) for members in by_class(targets) for rank, position in enumerate(members)]
    ranked.sort(key=lambda entry: (entry[0], int(targets[entry[1]])))
    return torch.tensor(sorted(position for _, position in ranked[:limit]), dtype=torch.int64)


def batch_bounds(num_images: int, batch_size: int, *, drop_last: bool, merge_single: bool) -> list[tuple[int, int]]:
    """(start, stop) of every batch of an epoch.

    Args:
        drop_last: leaves out the incomplete last batch.
        merge_single: a last batch of one image joins the batch before it, because BatchNorm cannot train on one image
            whose map has shrunk to 1x1.
    """
    bounds = [(start, min(start + batch_size, num_images)) for start in range(0, num_images, batch_size)]
    last = bounds[-1][1] - bounds[-1][0]
    if drop_last and last < batch_size:
        bounds.pop()
    elif merge_single and last == 1 < batch_size and len(bounds) > 1:
        bounds.pop()
        bounds[-1] = (bounds[-1][0], num_images)
    return bounds
