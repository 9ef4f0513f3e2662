"""Folders of images, one per class: train/<class>/ beside test/<class>/ or val/<class>/."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import torch

from tas_fast.data.decode import UnreadableImage, image_size_of, listed
from tas_fast.data.images import IMAGENET_MEAN, IMAGENET_STD, Files
from tas_fast.errors import UserError

SUFFIXES = frozenset({".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp"})
LAYOUT = "train/<class>/ and test/<class>/ (or val/<class>/) with images in them"


def read_folder(
    data_dir: str | os.PathLike[str],
    part: str,
    image_size: int | None,
    *,
    shorter_side: int | None = None,
    mean: tuple[float, ...] = IMAGENET_MEAN,
    std: tuple[float, ...] = IMAGENET_STD,
) -> Files:
    """The image files of `part` ("train" or "test"), by class and name; classes are the sorted folder names of train/.

    Names that begin with a dot are skipped. Nothing but headers is read; decoding checks the rest.

    Args:
        image_size: every image becomes image_size x image_size; None: they all have one size and keep it.
        shorter_side: to which the shorter side is resized before the centre is cropped; None: image_size.
        mean, std: per channel for pixels in 0..1; default ImageNet's.

    Raises:
        UserError: a folder is missing or empty, a file is empty or no image, or test/ has classes that train/ has not.
    """
    train = _class_folders(_part_folder(Path(data_dir), ("train",)))
    folders = train
    if part == "test":
        folders = _class_folders(_part_folder(Path(data_dir), ("test", "val")))
        _check_known_classes(folders, train)
    classes = tuple(folder.name for folder in train)
    numbers = {name: number for number, name in enumerate(classes)}
    entries = [(entry, numbers[folder.name]) for folder in folders for entry in _image_files(folder)]
    _check_not_empty([entry for entry, _ in entries])
    paths = tuple(entry.path for entry, _ in entries)
    size_from, size = (paths[0], (image_size, image_size)) if image_size is not None else _common_size(paths)
    return Files(
        paths=paths,
        targets=torch.tensor([target for _, target in entries], dtype=torch.int64),
        classes=classes,
        mean=mean,
        std=std,
        ids=torch.arange(len(paths)),
        stamp=f"{_stamp([entry for entry, _ in entries])}/{image_size}/{shorter_side}",
        size=size,
        size_from=size_from,
        image_size=image_size,
        shorter_side=shorter_side or image_size,
    )


def _part_folder(root: Path, names: tuple[str, ...]) -> Path:
    if not root.is_dir():
        raise UserError(f"{root} is not a folder; --data-dir must hold {LAYOUT}")
    for name in names:
        if (root / name).is_dir():
            return root / name
    raise UserError(f"{root / names[0]} does not exist; --data-dir must hold {LAYOUT}")


def _class_folders(folder: Path) -> list[Path]:
    found = sorted(path for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))
    if not found:
        raise UserError(f"{folder} has no class folders; --data-dir must hold {LAYOUT}")
    return found


def _check_known_classes(test: list[Path], train: list[Path]) -> None:
    known = {folder.name for folder in train}
    if unknown := [str(folder) for folder in test if folder.name not in known]:
        raise UserError(
            f"classes that {train[0].parent} does not have: {listed(unknown)}; remove them or add training images"
        )


def _image_files(folder: Path) -> list[os.DirEntry[str]]:
    with os.scandir(folder) as scanned:
        entries = sorted((entry for entry in scanned if not entry.name.startswith(".")), key=lambda entry: entry.name)
    if foreign := [entry.path for entry in entries if entry.is_dir() or _suffix(entry) not in SUFFIXES]:
        raise UserError(
            f"not image files: {listed(foreign)}; class folders may hold images alone ({' '.join(sorted(SUFFIXES))})"
        )
    if not entries:
        raise UserError(f"class folder {folder} is empty; add images or remove the folder")
    return entries


def _suffix(entry: os.DirEntry[str]) -> str:
    return os.path.splitext(entry.name)[1].lower()


def _check_not_empty(entries: list[os.DirEntry[str]]) -> None:
    if empty := [entry.path for entry in entries if entry.stat().st_size == 0]:
        raise UserError(f"image files of zero bytes: {listed(empty)}; remove or replace them")


def _common_size(paths: tuple[str, ...]) -> tuple[str, tuple[int, int]]:
    """The first file with a readable header and its size; decoding holds the others against it."""
    errors: list[UnreadableImage] = []
    for path in paths:
        try:
            return path, image_size_of(path)
        except UnreadableImage as error:
            errors.append(error)
    raise UserError(f"none of the image files can be read: {listed([error.path for error in errors])}; replace them")


def _stamp(entries: list[os.DirEntry[str]]) -> str:
    digest = hashlib.blake2b(digest_size=16)
    for entry in entries:
        status = entry.stat()
        digest.update(f"{entry.path}/{status.st_size}/{status.st_mtime_ns}\n".encode())
    return digest.hexdigest()
