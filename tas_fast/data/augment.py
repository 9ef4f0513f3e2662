"""Random crop with padding, horizontal flip, cutout and normalisation of whole batches, without a loop over images.

Pixels are uint8 [N, H, W, C]. `expand` appends the mirrored images and the black border; a crop is then H runs of W*C
consecutive bytes, and one `index_select` on an overlapping view copies them all. Per batch of 256 CIFAR images on one
core of a 2.x GHz x86 that took 0.2 ms, against 0.8 ms for indexing an unfolded view and 2.3 ms for a gather per byte.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from tas_fast.errors import UsageError


@dataclass(frozen=True)
class Augment:
    """What happens to a training image; the default is nothing.

    Raises:
        UsageError: a value is out of range.
    """

    crop_padding: int = 0  # pixels of black border on every side, from which a crop of the original size is taken
    flip: bool = False  # mirror left and right with probability 1/2
    cutout: int = 0  # side of a square that is set to the mean colour; 0 is off
    resized_crop: float = 0.0  # smallest share of the area of a random resized crop; 0 is off; loader "torch" alone
    color_jitter: float = 0.0  # strength of random brightness, contrast and saturation; loader "torch" alone

    def __post_init__(self) -> None:
        for name in ("crop_padding", "cutout"):
            if getattr(self, name) < 0:
                raise UsageError(f"augment.{name} must be 0 or more pixels, got {getattr(self, name)}")
        if not 0 <= self.resized_crop <= 1:
            raise UsageError(f"augment.resized_crop must be an area share between 0 and 1, got {self.resized_crop}")
        if not 0 <= self.color_jitter <= 1:
            raise UsageError(f"augment.color_jitter must lie between 0 and 1, got {self.color_jitter}")


class Draws(NamedTuple):
    """The random numbers of N images, int64 [N] each: crop offsets, 1 where mirrored, centre of the cutout."""

    top: Tensor
    left: Tensor
    mirror: Tensor
    cut_row: Tensor
    cut_column: Tensor

    def part(self, start: int, stop: int) -> Draws:
        """The draws of images start..stop-1."""
        return Draws(*(values[start:stop] for values in self))

    def to(self, device: torch.device) -> Draws:
        return Draws(*(values.to(device) for values in self))


def draw(num_images: int, augment: Augment, size: tuple[int, int], generator: torch.Generator) -> Draws:
    """Draws for `num_images` images of `size` (H, W); all five are drawn, so switching one off keeps the others."""

    def below(high: int) -> Tensor:
        return torch.randint(high, (num_images,), generator=generator)

    offsets = 2 * augment.crop_padding + 1
    draws = Draws(below(offsets), below(offsets), below(2), below(size[0]), below(size[1]))
    return draws if augment.flip else draws._replace(mirror=torch.zeros_like(draws.mirror))


def expand(pixels: Tensor, augment: Augment) -> Tensor:
    """[N, H, W, C] -> [N or 2N, H + 2p, W + 2p, C]: bordered images, then (with flip) the same mirrored."""
    padding = augment.crop_padding
    bordered = F.pad(pixels, (0, 0, padding, padding, padding, padding)) if padding else pixels
    return torch.cat([bordered, bordered.flip(2)]) if augment.flip else bordered


def crop_starts(index: Tensor, draws: Draws, expanded_shape: torch.Size, augment: Augment) -> Tensor:
    """Number of the first pixel of each crop in an expanded store, int64 [n]; `index` [n] are image positions."""
    images, height, width, _ = expanded_shape
    if augment.flip:
        index = index + draws.mirror * (images // 2)
    return (index * height + draws.top) * width + draws.left


def crop(expanded: Tensor, starts: Tensor, size: tuple[int, int]) -> Tensor:
    """Crops uint8 [n, H, W, C] of `size` (H, W) whose first pixels are `starts` [n]."""
    height, width = size
    stored_width, channels = expanded.shape[2], expanded.shape[3]
    num_pixels = expanded.numel() // channels
    runs = expanded.view(-1).as_strided((num_pixels - width + 1, width * channels), (channels, 1))
    rows = starts[:, None] + torch.arange(0, height * stored_width, stored_width, device=starts.device)
    return runs.index_select(0, rows.view(-1)).view(len(starts), height, width, channels)


def augment_pixels(pixels: Tensor, draws: Draws, augment: Augment) -> Tensor:
    """One batch mirrored and cropped, uint8 [N, H, W, C]; `pixels` (same shape) stay as they are."""
    if not augment.flip and not augment.crop_padding:
        return pixels
    expanded = expand(pixels, augment)
    index = torch.arange(len(pixels), device=pixels.device)
    starts = crop_starts(index, draws, expanded.shape, augment)
    return crop(expanded, starts, (pixels.shape[1], pixels.shape[2]))


def cut_out(images: Tensor, draws: Draws, side: int) -> None:
    """Sets a square of `side` around the drawn centre to 0 (the mean colour) in every image of [N, H, W, C], in place.

    Squares are clipped at the border, so some are smaller. Source: CUTOUT of the original TAS code.
    """
    n, height, width, channels = images.shape
    rows = torch.arange(height, device=images.device) - draws.cut_row[:, None] + side // 2
    columns = torch.arange(width, device=images.device) - draws.cut_column[:, None] + side // 2
    keep_rows, keep_columns = ((places < 0) | (places >= side) for places in (rows, columns))
    # Multiplying by 0 or 1 runs along whole pixel rows, 9 times faster than masked_fill_ (CIFAR batch, one core).
    keep = torch.maximum(
        keep_rows.to(images.dtype)[:, :, None],
        keep_columns.to(images.dtype).repeat_interleave(channels, 1)[:, None],
    )
    images.view(n, height, width * channels).mul_(keep)


class Finish:
    """Turns cropped pixels into a batch: normalised, cut out, of the asked type and layout.

    Values are (pixels / 255 - mean) / std, computed in float32 (float64 for float64) and rounded once to `dtype`.
    """

    def __init__(
        self,
        mean: tuple[float, ...],
        std: tuple[float, ...],
        width: int,
        *,
        cutout: int,
        device: torch.device,
        dtype: torch.dtype,
        channels_last: bool,
    ) -> None:
        self._cutout, self._dtype, self._channels_last = cutout, dtype, channels_last
        self._work = torch.float64 if dtype == torch.float64 else torch.float32
        means, stds = torch.tensor(mean, dtype=torch.float64), torch.tensor(std, dtype=torch.float64)
        # One value per byte of a pixel row: the inner loop is then W * C long instead of C, which vectorises.
        self._scale = (1 / (255 * stds)).repeat(width).to(device, self._work)
        self._shift = (-means / stds).repeat(width).to(device, self._work)

    def __call__(self, pixels: Tensor, draws: Draws) -> Tensor:
        """uint8 [N, H, W, C] and the draws of these images -> [N, C, H, W]."""
        n, height, width, channels = pixels.shape
        x = pixels.view(n, height, width * channels).to(self._work).mul_(self._scale).add_(self._shift)
        x = x.view(n, height, width, channels)
        if self._cutout:
            cut_out(x, draws, self._cutout)
        images = x.to(self._dtype).permute(0, 3, 1, 2)
        return images if self._channels_last else images.contiguous()
