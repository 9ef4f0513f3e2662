"""Small data sets for tests: images that carry their own number, class folders, CIFAR archives."""

import pickle
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from tas_fast.data.augment import Augment
from tas_fast.data.images import Images
from tas_fast.data.loader import Options


def numbered_images(count: int, num_classes: int = 3, size: tuple[int, int] = (2, 3)) -> Images:
    """Images whose first two pixels spell their number and whose normalised values are the plain pixels."""
    pixels = torch.zeros(count, *size, 1, dtype=torch.uint8)
    numbers = torch.arange(count)
    pixels[:, 0, 0, 0], pixels[:, 0, 1, 0] = (numbers // 256).to(torch.uint8), (numbers % 256).to(torch.uint8)
    return Images(
        pixels=pixels,
        targets=numbers % num_classes,
        classes=tuple(map(str, range(num_classes))),
        mean=(0.0,),
        std=(1 / 255,),
        ids=numbers,
        stamp=f"numbered/{count}/{num_classes}/{size}",
    )


def numbers_of(images: torch.Tensor) -> list[int]:
    """The numbers of images from `numbered_images`, [N, 1, H, W]."""
    values = images.round().to(torch.int64)
    return (values[:, 0, 0, 0] * 256 + values[:, 0, 0, 1]).tolist()


def options(split: str = "train", batch_size: int = 4, **changes: object) -> Options:
    """Options of a plain CPU loader without augmentation."""
    fields = {
        "device": torch.device("cpu"),
        "workers": 0,
        "seed": 0,
        "augment": Augment(),
        "channels_last": True,
        "dtype": torch.float32,
        "drop_last": False,
    }
    return Options(split=split, batch_size=batch_size, **{**fields, **changes})  # type: ignore[arg-type]


def random_image(height: int = 8, width: int = 8, mode: str = "RGB", seed: int = 0) -> Image.Image:
    """Noise of the given size, converted to `mode`."""
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels).convert(mode)


def write_folder(root: Path, counts: dict[str, int], size: tuple[int, int] = (8, 8), suffix: str = "png") -> Path:
    """Class folders like {"train/cat": 3, "test/cat": 1}, each with that many images; returns `root`."""
    for number, (folder, count) in enumerate(counts.items()):
        (root / folder).mkdir(parents=True)
        for image in range(count):
            random_image(*size, seed=1000 * number + image).save(root / folder / f"{image:03d}.{suffix}")
    return root


def write_cifar_batch(
    path: Path, count: int, labels_name: str = "labels", num_classes: int = 10, **content: object
) -> None:
    """A file in the form of the CIFAR archives; image i is filled with the value i % 251."""
    data = np.repeat((np.arange(count) % 251).astype(np.uint8)[:, None], 3072, axis=1)
    fields = {"data": data, labels_name: [number % num_classes for number in range(count)], **content}
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(pickle.dumps(fields, protocol=2))
