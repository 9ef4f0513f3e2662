"""From the name of a data set to a loader."""

from __future__ import annotations

import difflib
import os

import torch

from tas_fast.data.augment import Augment
from tas_fast.data.cifar import read_cifar
from tas_fast.data.device import DeviceLoader
from tas_fast.data.digits import read_digits
from tas_fast.data.folder import read_folder
from tas_fast.data.images import Files, Images
from tas_fast.data.loader import Loader, Options
from tas_fast.data.order import balanced_subset
from tas_fast.data.stream import StreamLoader
from tas_fast.data.synthetic import read_synthetic
from tas_fast.errors import UsageError, UserError

DATASETS = ("digits", "cifar10", "cifar100", "folder", "imagenet", "synthetic")
SPLITS = ("train", "test", "search")
LOADERS = ("auto", "device", "dali", "torch")
IMAGENET_CLASSES, IMAGENET_SIZE = 1000, 224


def build_loader(
    dataset: str,
    data_dir: str | os.PathLike[str] | None,
    split: str,
    batch_size: int,
    *,
    loader: str = "auto",
    workers: int = 0,
    device: str | torch.device = "cpu",
    image_size: int | None = None,
    seed: int = 0,
    augment: Augment | None = None,
    channels_last: bool = True,
    dtype: torch.dtype = torch.float32,
    drop_last: bool | None = None,
    limit: int | None = None,
) -> Loader:
    """A loader of normalised batches on `device`; `Loader` tells what it yields and how it resumes.

    Args:
        dataset: one of DATASETS.
        data_dir: folder of the data; the embedded sets "digits" and "synthetic" do not use it.
        split: "train", "test", or "search" (two disjoint halves of the training set side by side).
        batch_size: images per batch, per half for "search". A last batch of a single training image joins the one
            before, which then has batch_size + 1.
        loader: "device" keeps all images as uint8 on `device`; "torch" reads them in `workers` processes as they are
            needed; "auto" is "torch" for imagenet and else "device".
        workers: threads that decode for "device", processes for "torch" (0: this one).
        image_size: images become image_size x image_size; None: they keep their common size (imagenet: 224).
        seed: of order, augmentation and halves.
        augment: None is `default_augment`. The test split is never augmented.
        channels_last, dtype: layout and floating-point type of the images.
        drop_last: leave out the incomplete last batch; None is False.
        limit: use at most so many images, classes evenly.

    Raises:
        UsageError: an unknown name (the nearest known one is offered) or an impossible value.
        UserError: the data are missing, damaged or too large for the memory.

    Example:
        >>> train = build_loader("digits", None, "train", 96)
        >>> images, targets = next(iter(train))
        >>> images.shape, targets.shape
        (torch.Size([96, 1, 8, 8]), torch.Size([96]))
    """
    _check_names(dataset, split, loader)
    _check_positive(batch_size=batch_size, image_size=image_size, limit=limit)
    if workers < 0:
        raise UsageError(f"--workers must be 0 or more, got {workers}")
    if not dtype.is_floating_point:
        raise UsageError(f"images come as floating-point numbers, got dtype {dtype}")
    kind = loader if loader != "auto" else ("torch" if dataset == "imagenet" else "device")
    part = "test" if split == "test" else "train"
    source = _read(dataset, data_dir, part, image_size, kind)
    if limit is not None and limit < len(source.targets):
        source = source.take(balanced_subset(source.targets, limit))
    if augment is None:
        augment = default_augment(dataset, source.size, kind)
    options = Options(
        split=split,
        batch_size=batch_size,
        device=torch.device(device),
        workers=workers,
        seed=seed,
        augment=Augment() if split == "test" else augment,
        channels_last=channels_last,
        dtype=dtype,
        drop_last=bool(drop_last),
    )
    return StreamLoader(source, options) if kind == "torch" else DeviceLoader(source, options)


def default_augment(dataset: str, size: tuple[int, int], loader: str = "device") -> Augment:
    """Augmentation of training images of `size` (H, W) when none is asked for.

    CIFAR: padding 4 and flip, as in TAS. Digits: padding 1 and no flip, since digits are not symmetric. Others: an
    eighth of the shorter side as padding; flip except for the synthetic patterns. ImageNet through loader "torch":
    random resized crop (area from 8 %), flip, colour jitter 0.4.
    """
    if dataset == "imagenet" and loader == "torch":
        return Augment(flip=True, resized_crop=0.08, color_jitter=0.4)
    return Augment(crop_padding=max(1, min(size) // 8), flip=dataset not in ("digits", "synthetic"))


def _read(
    dataset: str, data_dir: str | os.PathLike[str] | None, part: str, image_size: int | None, kind: str
) -> Images | Files:
    if dataset == "digits":
        return read_digits(part).resized(image_size)
    if dataset == "synthetic":
        return read_synthetic(part, size=(image_size or 32, image_size or 32))
    if data_dir is None:
        raise UsageError(f"--dataset {dataset} needs --data-dir, the folder that holds it")
    if dataset == "imagenet":
        return _read_imagenet(data_dir, part, image_size or IMAGENET_SIZE, kind)
    if dataset == "folder":
        return read_folder(data_dir, part, image_size)
    return read_cifar(dataset, data_dir, part, image_size)


def _read_imagenet(data_dir: str | os.PathLike[str], part: str, image_size: int, kind: str) -> Files:
    # Evaluation as usual: shorter side 256 for a crop of 224. Resident images are trained and tested at one scale.
    shorter_side = image_size * 256 // 224 if part == "test" and kind == "torch" else None
    files = read_folder(data_dir, part, image_size, shorter_side=shorter_side)
    if len(files.classes) != IMAGENET_CLASSES:
        raise UserError(
            f"{data_dir} has {len(files.classes)} class folders in train/, ImageNet has {IMAGENET_CLASSES}; "
            "use --dataset folder for other data"
        )
    return files


def _check_names(dataset: str, split: str, loader: str) -> None:
    _check_known("data set", dataset, DATASETS)
    _check_known("split", split, SPLITS)
    _check_known("loader", loader, LOADERS)
    if loader == "dali":
        raise UsageError("loader dali is not available in this version; use --loader device or torch")


def _check_known(kind: str, name: str, known: tuple[str, ...]) -> None:
    if name not in known:
        near = difflib.get_close_matches(str(name).lower(), known, n=2, cutoff=0.5)
        hint = f"did you mean {' or '.join(near)}? " if near else ""
        raise UsageError(f"unknown {kind} {name!r}; {hint}Known: {', '.join(known)}")


def _check_positive(**values: int | None) -> None:
    for name, value in values.items():
        if value is not None and value < 1:
            raise UsageError(f"--{name.replace('_', '-')} must be 1 or more, got {value}")
