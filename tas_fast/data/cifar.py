"""CIFAR-10 and CIFAR-100 from the authors' python archives, or from folders of images, one per class."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import torch

from tas_fast.data.cifar_names import CIFAR10, CIFAR100
from tas_fast.data.folder import read_folder
from tas_fast.data.images import Files, Images
from tas_fast.data.plain_pickle import ByteArray, load_plain
from tas_fast.errors import UserError

NUM_IMAGES = {"train": 50_000, "test": 10_000}
SIZE = (32, 32)


@dataclass(frozen=True)
class Archive:
    """Where an archive keeps its images, and the statistics of the training set."""

    folder: str
    files: dict[str, tuple[str, ...]]
    labels: str
    classes: tuple[str, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]


# Means and standard deviations: the original TAS code, xautodl/datasets/get_dataset_with_transform.py.
ARCHIVES = {
    "cifar10": Archive(
        folder="cifar-10-batches-py",
        files={"train": tuple(f"data_batch_{number}" for number in range(1, 6)), "test": ("test_batch",)},
        labels="labels",
        classes=CIFAR10,
        mean=(125.3 / 255, 123.0 / 255, 113.9 / 255),
        std=(63.0 / 255, 62.1 / 255, 66.7 / 255),
    ),
    "cifar100": Archive(
        folder="cifar-100-python",
        files={"train": ("train",), "test": ("test",)},
        labels="fine_labels",
        classes=CIFAR100,
        mean=(129.3 / 255, 124.1 / 255, 112.4 / 255),
        std=(68.2 / 255, 65.4 / 255, 70.4 / 255),
    ),
}


def read_cifar(dataset: str, data_dir: str | os.PathLike[str], part: str, image_size: int | None) -> Images | Files:
    """`part` ("train" or "test") of "cifar10" or "cifar100": decoded from the archive, else as files of class folders.

    The archive is looked for in `data_dir` and in its sub-folder of the archive's name. Pickles are read without
    executing anything from them (`load_plain`).

    Raises:
        UserError: neither is there, a file is damaged, or the number of images, their size or classes are not CIFAR's.
    """
    archive, root = ARCHIVES[dataset], Path(data_dir)
    folders = [folder for folder in (root / archive.folder, root) if (folder / archive.files[part][0]).is_file()]
    if folders:
        return _read_archive(archive, folders[0], part).resized(image_size)
    if not (root / "train").is_dir():
        raise UserError(
            f"{root} holds neither {archive.folder}/ (the python version, unpacked, from "
            f"https://www.cs.toronto.edu/~kriz/cifar.html) nor train/<class>/ and test/<class>/ with images"
        )
    files = read_folder(root, part, image_size, mean=archive.mean, std=archive.std)
    if len(files.classes) != len(archive.classes):
        raise UserError(
            f"{root / 'train'} has {len(files.classes)} class folders, {dataset} has {len(archive.classes)} classes; "
            "use --dataset folder for other data"
        )
    if image_size is None and files.size != SIZE:
        raise UserError(
            f"{files.size_from} is {files.size[1]}x{files.size[0]}, {dataset} has 32x32 pixels; "
            "use --image-size 32, or --dataset folder for other data"
        )
    return files


def _read_archive(archive: Archive, folder: Path, part: str) -> Images:
    batches = [_read_batch(folder / name, archive) for name in archive.files[part]]
    pixels, targets = torch.cat([batch[0] for batch in batches]), torch.cat([batch[1] for batch in batches])
    if len(pixels) != NUM_IMAGES[part]:
        raise UserError(
            f"{folder} has {len(pixels)} images in {', '.join(archive.files[part])} instead of {NUM_IMAGES[part]}; "
            "unpack the archive again"
        )
    return Images(
        pixels=pixels,
        targets=targets,
        classes=archive.classes,
        mean=archive.mean,
        std=archive.std,
        ids=torch.arange(len(targets)),
        stamp="/".join(f"{folder / name}:{(folder / name).stat().st_mtime_ns}" for name in archive.files[part]),
    )


def _read_batch(path: Path, archive: Archive) -> tuple[torch.Tensor, torch.Tensor]:
    if not path.is_file():
        raise UserError(f"{path} is missing; unpack the archive again")
    content = load_plain(path)
    data, labels = (content.get("data"), content.get(archive.labels)) if isinstance(content, dict) else (None, None)
    if not isinstance(data, ByteArray) or data.values.shape[1:] != (3 * 32 * 32,):
        raise UserError(
            f"{path} is not a CIFAR batch: 'data' must be a uint8 array [n, 3072]; unpack the archive again"
        )
    if not isinstance(labels, list) or not _are_labels(labels, len(data.values), len(archive.classes)):
        raise UserError(
            f"{path} is not a CIFAR batch: '{archive.labels}' must be {len(data.values)} integers below "
            f"{len(archive.classes)}; unpack the archive again"
        )
    pixels = torch.from_numpy(data.values.reshape(-1, 3, *SIZE).transpose(0, 2, 3, 1).copy())
    return pixels, torch.tensor(labels, dtype=torch.int64)


def _are_labels(labels: list[object], count: int, num_classes: int) -> bool:
    return len(labels) == count and all(isinstance(label, int) and 0 <= label < num_classes for label in labels)
