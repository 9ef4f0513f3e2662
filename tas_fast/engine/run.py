"""What the phases of one run share: data, device, precision, seeds, and the training of a plain network."""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import hashlib
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torchvision.transforms import v2

from tas_fast.config import Config, TasConfig, TrainConfig
from tas_fast.data import Augment, Loader, build_loader, default_augment
from tas_fast.engine.evaluation import accuracy
from tas_fast.engine.loop import Phase, train
from tas_fast.engine.method import Supervised
from tas_fast.engine.precision import Precision
from tas_fast.engine.session import Session
from tas_fast.errors import UsageError, UserError
from tas_fast.files import make_folder, remove_temporaries
from tas_fast.optim import cosine_lr, sgd


@dataclass
class Run:
    """One run: its settings, folder, device and test set; `session` knows what is done and what is not."""

    config: Config
    folder: Path
    device: torch.device
    test_loader: Loader
    session: Session

    def loader(self, split: str, stream: str) -> Loader:
        """Return a loader of `split`; every `stream` has a random order of its own."""
        augment = None if split == "test" else augmentation(self.config, self.test_loader.image_size)
        return open_data(self.config, split, self.device, stream, augment)

    def precision(self) -> Precision:
        """Return a fresh precision, with a loss scale of its own."""
        return Precision(self.device, self.config.run.amp, self.config.run.amp_dtype)

    def place(self, model: nn.Module) -> nn.Module:
        """Return `model` on the run's device in the run's memory layout."""
        layout = torch.channels_last if self.config.run.channels_last else torch.contiguous_format
        return model.to(self.device).to(memory_format=layout)

    def accuracy(self, model: nn.Module) -> float:
        """Return the accuracy on the test set in percent."""
        return accuracy(model, self.test_loader, self.precision())

    def train_network(
        self, name: str, model: nn.Module, criterion: Callable[..., torch.Tensor]
    ) -> tuple[nn.Module, dict[str, Any]]:
        """Train `model` (in its place) as phase `name`.

        Returns:
            The network to keep, which is the moving average where one is asked for, and what `engine.train` measured.
        """
        settings, average = self.config.train, None
        if settings.ema_decay:
            update = torch.optim.swa_utils.get_ema_multi_avg_fn(settings.ema_decay)
            average = torch.optim.swa_utils.AveragedModel(model, multi_avg_fn=update, use_buffers=True)
        kept = model if average is None else average.module
        classes = self.test_loader.num_classes
        mixup = v2.MixUp(alpha=settings.mixup_alpha, num_classes=classes) if settings.mixup_alpha else None
        loader = self.loader("train", name)
        phase = Phase(
            name=name,
            model=model,
            method=Supervised(criterion, mixup),
            loader=loader,
            optimizer=weight_optimizer(model.parameters(), settings),
            learning_rate=schedule(settings),
            epochs=settings.epochs,
            precision=self.precision(),
            compiled=torch.compile(model) if self.config.run.torchcompile else None,  # type: ignore[arg-type]
            average=average,
            evaluate=lambda: self.accuracy(kept),
            clip_grad=settings.clip_grad,
            max_steps=self.config.run.max_steps,
            rate_name="train.lr",
        )
        with contextlib.closing(loader):
            return kept, train(phase, self.session)


def weight_optimizer(parameters: Any, settings: TrainConfig | TasConfig) -> torch.optim.Optimizer:
    """Return the SGD that `settings` describe."""
    return sgd(
        parameters,
        lr=settings.lr,
        momentum=settings.momentum,
        nesterov=settings.nesterov,
        weight_decay=settings.weight_decay,
    )


def schedule(settings: TrainConfig | TasConfig) -> Callable[[float], float]:
    """Return the learning rate of `settings` as a function of the position in epochs."""
    warmup = settings.warmup_epochs
    return lambda position: cosine_lr(position, base=settings.lr, epochs=settings.epochs, warmup_epochs=warmup)


def seed(config: Config, purpose: str) -> int:
    """Return a seed of its own for each purpose, so that no phase depends on what ran before it."""
    digest = hashlib.sha256(f"{config.run.seed} {purpose}".encode()).digest()
    return int.from_bytes(digest[:7], "little")


def open_data(
    config: Config, split: str, device: torch.device, stream: str = "", augment: Augment | None = None
) -> Loader:
    """Return the loader of `split` that `config` describes."""
    data = config.data
    return build_loader(
        data.dataset,
        data.data_dir,
        split,
        data.batch_size,
        loader=data.loader,
        workers=data.workers,
        device=device,
        image_size=data.image_size,
        seed=seed(config, f"data {stream}"),
        augment=augment,
        channels_last=config.run.channels_last,
        limit=data.limit,
    )


def augmentation(config: Config, size: tuple[int, int]) -> Augment:
    """Return the augmentation of training images of `size` (H, W): the data set's own, with what the config changes."""
    data = config.data
    loader = ("torch" if data.dataset == "imagenet" else "device") if data.loader == "auto" else data.loader
    given = {"crop_padding": data.crop_padding, "flip": data.flip, "cutout": data.cutout}
    changes: dict[str, Any] = {name: value for name, value in given.items() if value is not None}
    return dataclasses.replace(default_augment(data.dataset, size, loader), **changes)


def find_device(name: str) -> torch.device:
    """Return the device called `name` ("auto", "cpu", "cuda", "cuda:1"). Raises `UsageError` when it is not there."""
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise UsageError(
            f"WORLD_SIZE is {os.environ['WORLD_SIZE']}: this version runs in one process, start it without torchrun"
        )
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError:
        device = torch.device("meta")
    if device.type not in ("cpu", "cuda"):
        raise UsageError(f"unknown device {name!r}; use auto, cpu, cuda or cuda:N")
    count = torch.cuda.device_count()
    if device.type == "cuda" and (device.index or 0) >= count:
        raise UsageError(f"device {name} asked for, but PyTorch sees {count} CUDA devices; use --device cpu")
    return device


def describe_device(device: torch.device) -> str:
    """Return the name of the GPU, or the CPU's instruction set and number of threads."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"cpu, {torch.backends.cpu.get_cpu_capability()}, {torch.get_num_threads()} threads"


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Create `folder`, keep other processes out of it while the context lasts, and clear what a killed one left.

    Raises:
        UserError: another process is at work there, or the folder cannot be created.
    """
    make_folder(folder)
    handle = os.open(folder / ".lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(f"another process is at work in {folder}; wait for it or stop it") from None
        remove_temporaries(folder)
        yield
    finally:
        os.close(handle)
