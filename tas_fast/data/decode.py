"""Image files to pixels, one by one or a whole set into memory."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor
from tqdm import tqdm

from tas_fast.data.images import Files, Images
from tas_fast.errors import UserError


class UnreadableImage(UserError):
    """One file cannot be decoded."""

    def __init__(self, path: str, reason: str) -> None:
        super().__init__(f"{path} cannot be read ({reason}); remove or replace it")
        self.path, self.reason = path, reason


def listed(items: list[str], most: int = 5) -> str:
    """The first `most` items with commas, then "and N more"."""
    more = f" and {len(items) - most} more" if len(items) > most else ""
    return ", ".join(items[:most]) + more


def read_rgb(path: str) -> Image.Image:
    """The RGB image of a file: greyscale (8 and 16 bit), palette, CMYK and transparent ones are converted.

    Alpha is dropped and orientation tags are ignored, as by torchvision.

    Raises:
        UnreadableImage: the file is missing, no image, truncated or corrupted.
    """
    try:
        with Image.open(path) as image:
            return _to_rgb(image)
    except MemoryError:
        raise
    except Exception as error:  # decoders raise what their format meets: OSError, SyntaxError, struct.error, ...
        raise UnreadableImage(path, _reason(error)) from error


def image_size_of(path: str) -> tuple[int, int]:
    """(H, W) of an image file, from its header.

    Raises:
        UnreadableImage: the file has no image header.
    """
    try:
        with Image.open(path) as image:
            return image.height, image.width
    except Exception as error:
        raise UnreadableImage(path, _reason(error)) from error


def fitted(image: Image.Image, files: Files, path: str) -> Image.Image:
    """`image` at `files.size`: resized and cropped in the centre, or as it is where no image_size was asked for.

    Raises:
        UserError: no image_size was asked for and `image` has another size than the rest.
    """
    width, height = image.size
    if files.image_size is None or files.shorter_side is None:
        if (height, width) != files.size:
            raise UserError(
                f"images of mixed sizes: {files.size_from} is {files.size[1]}x{files.size[0]} and {path} is "
                f"{width}x{height} (width x height); bring all to one size with, say, --image-size {min(files.size)}"
            )
        return image
    scale = files.shorter_side / min(width, height)
    width, height = max(files.shorter_side, int(width * scale)), max(files.shorter_side, int(height * scale))
    left, top = round((width - files.image_size) / 2), round((height - files.image_size) / 2)
    if image.size != (width, height):
        image = image.resize((width, height), Image.Resampling.BILINEAR)
    return image.crop((left, top, left + files.image_size, top + files.image_size))


def to_pixels(image: Image.Image) -> Tensor:
    """RGB image -> uint8 [H, W, 3]."""
    return torch.from_numpy(np.array(image))


def decode(files: Files, workers: int) -> Images:
    """All images of `files`, decoded once by `workers` threads (at least one) behind a progress bar.

    Raises:
        UserError: files cannot be decoded (all are tried, five are named), or their sizes differ.
    """
    pixels = torch.zeros((len(files.paths), *files.size, files.channels), dtype=torch.uint8)

    def read(position: int) -> UnreadableImage | None:
        try:
            pixels[position] = to_pixels(fitted(read_rgb(files.paths[position]), files, files.paths[position]))
        except UnreadableImage as error:
            return error
        return None

    pool = ThreadPoolExecutor(max(1, workers))  # PIL decodes and resizes outside the interpreter's lock
    try:
        results = pool.map(read, range(len(files.paths)))
        bar = tqdm(results, total=len(files.paths), desc="decode", unit="img", disable=None, leave=False)
        failures = [error for error in bar if error is not None]
    finally:
        pool.shutdown(cancel_futures=True)
    if failures:
        names = listed([f"{error.path} ({error.reason})" for error in failures])
        raise UserError(f"{len(failures)} image files cannot be read: {names}; remove or replace them")
    return Images(
        pixels=pixels,
        targets=files.targets,
        classes=files.classes,
        mean=files.mean,
        std=files.std,
        ids=files.ids,
        stamp=files.stamp,
    )


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode == "F":
        raise ValueError("32-bit floating-point pixels")
    if image.mode.startswith("I"):  # 16-bit greyscale: PIL's own conversion would clip instead of scale
        return Image.fromarray((np.asarray(image).astype(np.int64) >> 8).clip(0, 255).astype(np.uint8)).convert("RGB")
    # By way of RGBA, because PIL warns about palettes with transparent entries.
    return (image.convert("RGBA") if "transparency" in image.info else image).convert("RGB")


def _reason(error: Exception) -> str:
    if isinstance(error, UnidentifiedImageError):
        return "not an image"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return (str(error) or type(error).__name__).splitlines()[0]
