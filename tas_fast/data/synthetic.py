"""Generated images that a small network can learn: a smooth pattern per class under noise."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from tas_fast.data.images import Images
from tas_fast.data.order import generator

TRAIN_IMAGES, TEST_IMAGES = 2048, 512
_CONTRAST, _NOISE = 40.0, 40.0  # standard deviations of pattern and noise, in grey levels of 255
_CHUNK = 64


def read_synthetic(
    part: str,
    *,
    num_images: int | None = None,
    num_classes: int = 10,
    channels: int = 3,
    size: tuple[int, int] = (32, 32),
) -> Images:
    """`num_images` images of `size` (H, W) for `part` ("train": 2048, "test": 512 unless told), classes by turns.

    Patterns are the same in both parts, noise is not. The same arguments always give the same images.
    """
    count = num_images or (TRAIN_IMAGES if part == "train" else TEST_IMAGES)
    patterns = _patterns(num_classes, channels, size)
    targets = torch.arange(count) % num_classes
    rng = generator("synthetic", part)
    chunks = [_noisy(patterns[chunk], rng) for chunk in targets.split(_CHUNK)]
    return Images(
        pixels=torch.cat(chunks),
        targets=targets,
        classes=tuple(f"pattern {number}" for number in range(num_classes)),
        mean=(0.5,) * channels,
        std=(0.25,) * channels,
        ids=torch.arange(count),
        stamp=f"synthetic/{part}/{count}/{num_classes}/{channels}/{size}",
    )


def _patterns(num_classes: int, channels: int, size: tuple[int, int]) -> Tensor:
    coarse = torch.randn(num_classes, channels, 4, 4, generator=generator("synthetic", "patterns"))
    smooth = F.interpolate(coarse, size=size, mode="bilinear", align_corners=False)
    return (128 + _CONTRAST * smooth).permute(0, 2, 3, 1).contiguous()


def _noisy(images: Tensor, rng: torch.Generator) -> Tensor:
    noise = torch.randn(images.shape, generator=rng)
    return images.add(noise, alpha=_NOISE).round_().clamp_(0, 255).to(torch.uint8)
