"""The training loop of the library: teachers, supernets and derived networks alike; a `Method` says what is special."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from tqdm import tqdm

from tas_fast.engine.method import Batch, Method
from tas_fast.engine.precision import Precision
from tas_fast.engine.session import Session
from tas_fast.errors import UserError

FETCH_EVERY = 50  # steps between reads of the loss, which wait for the device


@dataclass
class Phase:
    """One training: what is trained, by which method, on what, for how long.

    Args:
        name: "teacher", "search", "distill", ...; appears in metrics and checkpoints.
        model: trained in place.
        method: loss and further moments.
        loader: yields batches; has `set_epoch`, `state_dict`, `load_state_dict` and a length.
        optimizer: of the model's weights.
        learning_rate: position in epochs (fractional) -> rate.
        epochs: length of the training.
        precision: autocast and loss scaling.
        compiled: what runs instead of `model` in the loss (torch.compile); None: the model.
        average: moving average of the model's weights, updated after each step.
        evaluate: returns the accuracy in percent, measured after each epoch; None: not measured.
        clip_grad: largest gradient norm.
        max_steps: ends an epoch early.
        rate_name: the setting behind `learning_rate`, named when the loss explodes.
    """

    name: str
    model: nn.Module
    method: Method[Any]
    loader: Any
    optimizer: torch.optim.Optimizer
    learning_rate: Callable[[float], float]
    epochs: int
    precision: Precision
    compiled: nn.Module | None = None
    average: torch.optim.swa_utils.AveragedModel | None = None
    evaluate: Callable[[], float] | None = None
    clip_grad: float | None = None
    max_steps: int | None = None
    rate_name: str = "lr"

    @property
    def steps(self) -> int:
        """Steps per epoch."""
        return min(len(self.loader), self.max_steps or len(self.loader))


@dataclass
class Progress:
    """Where a phase stands. `sums` are over the current epoch; times of single steps do not survive a resume."""

    epoch: int = 0
    step: int = 0  # within the epoch
    images: int = 0
    sums: dict[str, Tensor] = field(default_factory=dict)
    seconds: float = 0.0  # of all epochs, earlier runs included
    step_ms: list[float] = field(default_factory=list)


def train(phase: Phase, session: Session) -> dict[str, Any]:
    """Train `phase` to its end, from the session's checkpoint if that was written in this phase.

    Returns:
        {"seconds": training time, "step_ms": median time of one step, "images_per_second"}; the last two are of this
            process's steps, None where it had none to do. On a GPU steps are timed between waits for the device, so
            "step_ms" contains the waiting for data there.

    Raises:
        UserError: the loss became infinite or not a number.
        Interrupted: the run was asked to stop; a checkpoint has been written.
    """
    phase.method.prepare(phase.model, phase.optimizer)
    progress = _restore(phase, session) or Progress()
    phase.model.train()
    started, earlier, images = time.perf_counter(), progress.seconds, 0
    with _bar(phase, progress) as bar:
        while progress.epoch < phase.epochs:
            phase.method.before_epoch(progress.epoch, phase.epochs)
            mark, since = time.perf_counter(), 0
            for batch in _batches(phase, progress):
                if phase.precision.device.type == "cpu":
                    mark = time.perf_counter()  # without the wait for data
                fetched, since = _step(phase, progress, batch), since + 1
                if fetched or phase.precision.device.type == "cpu":
                    progress.step_ms.append(1e3 * (time.perf_counter() - mark) / since)
                    mark, since = time.perf_counter(), 0
                images += sum(len(part) for part in batch[::2])  # a search step sees two batches
                progress.seconds = earlier + time.perf_counter() - started
                bar.update()
                if progress.step < phase.steps:
                    session.after_step(phase.name, lambda: _state(phase, progress))
            row = _end_epoch(phase, progress)
            row["images_per_second"] = round(images / (time.perf_counter() - started), 1)
            session.metrics.append(row)
            bar.set_postfix_str(_brief(row))
            if bar.disable and (progress.epoch == phase.epochs or progress.epoch % max(phase.epochs // 5, 1) == 0):
                print(f"{phase.name} {progress.epoch}/{phase.epochs}  {_brief(row)}", flush=True)
            session.after_step(phase.name, lambda: _state(phase, progress))
    elapsed = time.perf_counter() - started
    return {
        "seconds": earlier + elapsed,
        "step_ms": statistics.median(progress.step_ms) if progress.step_ms else None,
        "images_per_second": images / elapsed if images else None,
    }


def _step(phase: Phase, progress: Progress, batch: Batch) -> bool:
    """One update of the weights, then the method's own; returns whether it waited for the device."""
    rate = phase.learning_rate(progress.epoch + progress.step / phase.steps)
    for group in phase.optimizer.param_groups:
        group["lr"] = rate
    phase.optimizer.zero_grad()
    with phase.precision.autocast():
        loss, logits, classes = phase.method.loss(phase.model if phase.compiled is None else phase.compiled, batch)
    phase.precision.backward(loss)
    phase.precision.step(phase.optimizer, phase.clip_grad)
    if phase.average is not None:
        phase.average.update_parameters(phase.model)
    values = {"loss": loss.detach() * len(classes), "correct": (logits.detach().argmax(1) == classes).sum()}
    more = phase.method.after_step(phase.model, batch, phase.precision)
    values |= {name: value.detach() * len(classes) for name, value in more.items()}
    for name, value in values.items():
        total = progress.sums.get(name)
        progress.sums[name] = value.double() if total is None else total + value
    progress.images += len(classes)
    progress.step += 1
    fetch = progress.step % FETCH_EVERY == 0 or progress.step == phase.steps
    if fetch:
        _check_finite(phase, progress)
    return fetch


def _batches(phase: Phase, progress: Progress) -> Iterator[Batch]:
    """The rest of the current epoch."""
    if progress.step == 0:
        phase.loader.set_epoch(progress.epoch)
    for batch in phase.loader:
        yield batch
        if progress.step >= phase.steps:
            return


def _check_finite(phase: Phase, progress: Progress) -> None:
    for name, total in progress.sums.items():
        if not math.isfinite(value := total.item()):
            raise _exploded(phase, f"the {name} became {value}".replace("_", " "), progress.epoch + 1, progress.step)


def _exploded(phase: Phase, what: str, epoch: int, step: int) -> UserError:
    rate = phase.optimizer.param_groups[0]["lr"]
    return UserError(
        f"{what} in {phase.name}, epoch {epoch}, by step {step}; lower {phase.rate_name} (it was {rate:.3g} there) "
        f"or set {phase.rate_name.replace('lr', 'clip_grad')}"
    )


def _end_epoch(phase: Phase, progress: Progress) -> dict[str, Any]:
    """The epoch's row of metrics; `progress` moves on to the next epoch."""
    means = {name: total.item() / progress.images for name, total in progress.sums.items()}
    row: dict[str, Any] = {"phase": phase.name, "epoch": progress.epoch, "step": (progress.epoch + 1) * phase.steps}
    row["train_accuracy"] = 100.0 * means.pop("correct")
    row |= means
    row["lr"] = phase.optimizer.param_groups[0]["lr"]
    row |= phase.method.after_epoch(phase.model)
    if phase.evaluate is not None:
        row["accuracy"] = phase.evaluate()
    progress.epoch, progress.step, progress.images, progress.sums = progress.epoch + 1, 0, 0, {}
    broken = [name for name, value in row.items() if isinstance(value, float) and not math.isfinite(value)]
    if broken:
        raise _exploded(phase, f"{broken[0]} became {row[broken[0]]}", progress.epoch, phase.steps)
    return row


def _state(phase: Phase, progress: Progress) -> dict[str, Any]:
    if progress.images:
        _check_finite(phase, progress)  # a ruined network must not push good checkpoints out
    kept = {"epoch", "step", "images", "sums", "seconds"}
    state = {
        "progress": {name: value for name, value in vars(progress).items() if name in kept},
        "model": phase.model.state_dict(),
        "optimizer": phase.optimizer.state_dict(),
        "scaler": phase.precision.scaler.state_dict(),
        "method": phase.method.state_dict(),
        "loader": phase.loader.state_dict(),
    }
    if phase.average is not None:
        state["average"] = phase.average.state_dict()
    return state


def _restore(phase: Phase, session: Session) -> Progress | None:
    state = session.restore(phase.name)
    if state is None:
        return None
    phase.model.load_state_dict(state["model"])
    phase.optimizer.load_state_dict(state["optimizer"])
    phase.precision.scaler.load_state_dict(state["scaler"])
    phase.method.load_state_dict(state["method"])
    phase.loader.load_state_dict(state["loader"])
    if phase.average is not None:
        phase.average.load_state_dict(state["average"])
    progress = Progress(**state["progress"])
    progress.sums = {name: total.to(phase.precision.device) for name, total in progress.sums.items()}
    return progress


def _bar(phase: Phase, progress: Progress) -> Any:
    done, total = progress.epoch * phase.steps + progress.step, phase.epochs * phase.steps
    return tqdm(
        desc=phase.name, unit="step", initial=done, total=total, dynamic_ncols=True, disable=None, mininterval=0.5
    )


def _brief(row: dict[str, Any]) -> str:
    parts = [f"loss {row['loss']:.3f}"]
    if "accuracy" in row:
        parts.append(f"accuracy {row['accuracy']:.2f} %")
    if "argmax_macs" in row:
        parts.append(f"MACs {row['argmax_macs'] / 1e6:.3g} M (target {row['target_macs'] / 1e6:.3g} M)")
    return "  ".join([*parts, f"{row['images_per_second']:.0f} images/s"])
