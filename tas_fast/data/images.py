"""Values that readers hand to loaders: labels with decoded pixels, or labels with files still to be decoded."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


@dataclass(frozen=True, eq=False)
class Images:
    """Decoded images.

    `pixels` uint8 [M, H, W, C]; `targets` int64 [M]; `ids` int64 [M], the images' numbers in the whole training or test
    set; `mean`, `std` per channel for pixels scaled to 0..1; `stamp` changes when the data do.
    """

    pixels: Tensor
    targets: Tensor
    classes: tuple[str, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    ids: Tensor
    stamp: str

    @property
    def size(self) -> tuple[int, int]:
        return self.pixels.shape[1], self.pixels.shape[2]

    @property
    def channels(self) -> int:
        return self.pixels.shape[3]

    def take(self, index: Tensor) -> Images:
        """The images at the positions `index` [m], in that order."""
        return replace(self, pixels=self.pixels[index], targets=self.targets[index], ids=self.ids[index])

    def resized(self, size: int | None) -> Images:
        """The images as size x size (bilinear, antialiased, rounded to uint8); unchanged for None or equal sizes."""
        if size is None or self.size == (size, size):
            return self
        parts = [_resize(chunk, size) for chunk in self.pixels.split(1024)]
        return replace(self, pixels=torch.cat(parts), stamp=f"{self.stamp}/{size}")


@dataclass(frozen=True, eq=False)
class Files:
    """Image files and their labels; they decode to RGB of `size` (H, W).

    `image_size` None leaves pixels as they are, and every file must have the size of the file `size_from`. Otherwise
    the shorter side is resized to `shorter_side` and the centre image_size x image_size kept. The rest as in `Images`.
    """

    paths: tuple[str, ...]
    targets: Tensor
    classes: tuple[str, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    ids: Tensor
    stamp: str
    size: tuple[int, int]
    size_from: str
    image_size: int | None
    shorter_side: int | None

    channels = 3

    def take(self, index: Tensor) -> Files:
        """The files at the positions `index` [m], in that order."""
        paths = tuple(self.paths[i] for i in index.tolist())
        return replace(self, paths=paths, targets=self.targets[index], ids=self.ids[index])


def _resize(pixels: Tensor, size: int) -> Tensor:
    x = pixels.permute(0, 3, 1, 2).to(torch.float32)
    x = F.interpolate(x, size=(size, size), mode="bilinear", antialias=True, align_corners=False)
    return x.round_().clamp_(0, 255).to(torch.uint8).permute(0, 2, 3, 1).contiguous()
