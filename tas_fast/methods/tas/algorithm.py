"""Algorithm 1 of TAS as a whole: train the unpruned network, search a smaller one, distil, evaluate, report."""

from __future__ import annotations

import contextlib
import json
import time
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import nn

import tas_fast
from tas_fast import _backend, artefact
from tas_fast.architecture import Architecture
from tas_fast.config import Config, parse_target
from tas_fast.distill import CrossEntropy, Distillation
from tas_fast.engine import Interruption, Phase, Precision, Run, Session, train
from tas_fast.engine.run import (
    augmentation,
    describe_device,
    find_device,
    locked,
    open_data,
    schedule,
    seed,
    weight_optimizer,
)
from tas_fast.errors import UsageError, UserError
from tas_fast.files import write_atomic
from tas_fast.methods.tas.method import TAS
from tas_fast.methods.tas.search_space import SearchSpace
from tas_fast.methods.tas.supernet import Supernet
from tas_fast.models import build
from tas_fast.report import MetricsLog, Pruned, Report, Seconds, Unpruned, target_reached, write_report

TEACHER = "teacher.safetensors"


def run(config: Config, folder: str | Path, *, command: str, resume: bool = False) -> Report:
    """Search, distil and report into `folder`.

    Args:
        config: all settings.
        folder: the run's folder, created where needed.
        command: stands in the report.
        resume: continue from the newest whole checkpoint in `folder`.

    Raises:
        UsageError: settings that cannot be; nothing has been written then.
        UserError: data, files or training went wrong.
        Interrupted: SIGINT or SIGTERM; a checkpoint has been written.
    """
    folder, began = Path(folder), time.perf_counter()
    device = find_device(config.run.device)
    test = open_data(config, "test", device)
    space = SearchSpace(config.model.name, test.num_classes, config.method.search, test.in_channels, test.image_size)
    target = reachable_target(config, space)
    check_fragments(config, space)
    precision = Precision(device, config.run.amp, config.run.amp_dtype)
    # Whatever is wrong with the training data shows here, before anything is written; later phases find them decoded.
    augment = augmentation(config, test.image_size)
    loaders = [test, *(open_data(config, split, device, augment=augment) for split in ("train", "search"))]
    if config.distill.teacher and not resume:
        _unpruned(space, Path(config.distill.teacher))
    settings, backend = yaml.safe_dump(config.to_dict(), sort_keys=False), _backend.summary(device.type)
    with Interruption() as interruption, locked(folder):
        write_atomic(folder / "config.yaml", settings)
        options = config.run
        session = Session(
            folder,
            lambda position: MetricsLog(folder, position),
            interruption,
            seconds=options.checkpoint_seconds,
            keep=options.checkpoint_history,
            resume=resume,
        )
        shared = Run(config, folder, device, test, session)
        print(f"{settings}device: {describe_device(device)}, {precision}\nbackend: {backend}", flush=True)
        try:
            teacher = _teacher(shared, space)
            architecture = _search(shared, space, target)
            distilled = _derived(shared, architecture, "distill", teacher) if config.distill.enabled else None
            plain = None
            if config.distill.compare or not config.distill.enabled:
                plain = _derived(shared, architecture, "compare", None)
        finally:
            session.metrics.close()
            for loader in loaders:
                loader.close()
        parts = {name: result["seconds"] for name, result in session.results.items()}
        report = Report(
            command=command,
            version=tas_fast.__version__,
            device=describe_device(device),
            backend=backend,
            seed=options.seed,
            dataset=config.data.dataset,
            model=space.model,
            method="tas",
            target=_target(target, architecture, space),
            unpruned=Unpruned(
                session.results["teacher"]["accuracy"], space.unpruned.macs(), space.unpruned.parameters()
            ),
            pruned=_pruned(architecture, space.unpruned, distilled, plain),
            seconds=_seconds(parts, time.perf_counter() - began),
            search_step_ms=session.results["search"]["step_ms"],
            images_per_second=session.results["search"]["images_per_second"],
            notes=_notes(config),
        )
        write_report(folder, report, architecture)
        return report


def reachable_target(config: Config, space: SearchSpace) -> int:
    """Return the MACs asked for. Raises `UsageError` with the reachable range when no network of `space` has them."""
    ratio, amount = parse_target(config.method.target_macs)
    unpruned, smallest = space.unpruned.macs(), space.smallest().macs()
    target = round(ratio * unpruned) if ratio is not None else int(amount or 0)
    if not smallest <= target <= unpruned:
        raise UsageError(
            f"target of {target / 1e6:.4g} M MACs is out of reach: a {space.search} search of {space.model} spans "
            f"{smallest / 1e6:.4g} M to {unpruned / 1e6:.4g} M (ratios {smallest / unpruned:.3f} to 1)"
        )
    return target


def check_fragments(config: Config, space: SearchSpace) -> None:
    """Raise `UsageError` when more widths are to be sampled than a convolution has candidates."""
    count, candidates = config.method.num_fragments, min(map(len, space.widths))
    if space.search != "depth" and count > candidates:
        raise UsageError(
            f"--num-fragments {count} is more than the {candidates} width candidates of a convolution of {space.model}"
        )


def _unpruned(space: SearchSpace, weights: Path | None = None) -> nn.Module:
    """The unpruned network, fresh or with the weights of a file."""
    model = build(space.model, space.num_classes, space.unpruned)
    if weights is not None:
        artefact.load_weights(model, weights)
    return model


def _teacher(run: Run, space: SearchSpace) -> nn.Module | None:
    """The unpruned network, trained here, loaded from the user's file or the run's own; None when all is distilled."""
    config, path = run.config, run.folder / TEACHER
    finished, given = run.session.finished("teacher"), config.distill.teacher
    if finished and (run.session.finished("distill") or not config.distill.enabled):
        return None
    if finished and not path.exists():
        raise UserError(f"{path} is gone, and distillation needs it; put it back or start the run again")
    torch.manual_seed(seed(config, "teacher"))
    source = path if finished else Path(given) if given else None
    model, measured = run.place(_unpruned(space, source)), {"seconds": 0.0}
    if not finished:
        if not given:
            model, measured = run.train_network("teacher", model, CrossEntropy(config.train.label_smoothing))
        artefact.save_weights(model, path)
        run.session.finish("teacher", {**measured, "accuracy": run.accuracy(model)})
    return model


def _search(run: Run, space: SearchSpace, target: int) -> Architecture:
    """The architecture the supernet ends with, also written to the run's folder."""
    if run.session.finished("search"):
        return Architecture.from_dict(run.session.results["search"]["architecture"])
    config, settings = run.config, run.config.method
    torch.manual_seed(seed(config, "search"))
    supernet = Supernet(
        space.model,
        space.num_classes,
        space.search,
        in_channels=space.in_channels,
        image_size=space.image_size,
        relu_after_addition=settings.relu_after_addition,
    )
    run.place(supernet)
    method = TAS(supernet, settings, target, seed(config, "sampling"))
    loader = run.loader("search", "search")
    write_atomic(run.folder / "halves.json", json.dumps(loader.halves))
    phase = Phase(
        name="search",
        model=supernet,
        method=method,
        loader=loader,
        optimizer=weight_optimizer(supernet.weight_parameters(), settings),
        learning_rate=schedule(settings),
        epochs=settings.epochs,
        precision=run.precision(),
        clip_grad=settings.clip_grad,
        max_steps=config.run.max_steps,
        rate_name="method.lr",
    )
    with contextlib.closing(loader):
        measured = train(phase, run.session)
    architecture = method.result(supernet)
    architecture.to_json(run.folder / artefact.ARCHITECTURE)
    run.session.finish("search", {**measured, "architecture": architecture.to_dict()})
    return architecture


def _derived(run: Run, architecture: Architecture, name: str, teacher: nn.Module | None) -> dict[str, Any]:
    """Train the found network from scratch, with the teacher's help or without; what is evaluated is what was saved."""
    settings = run.config.distill
    plain = settings.enabled and name == "compare"
    weights = "model_without_distillation.safetensors" if plain else artefact.WEIGHTS
    if run.session.finished(name):
        artefact.load(run.folder, run.folder / weights)  # a result whose files are gone or damaged is none
        return run.session.results[name]
    torch.manual_seed(seed(run.config, name))
    model = run.place(build(architecture.model, architecture.num_classes, architecture))
    criterion: CrossEntropy | Distillation = CrossEntropy(run.config.train.label_smoothing)
    if teacher is not None:
        smoothing = run.config.train.label_smoothing
        criterion = Distillation(teacher, settings.alpha, settings.temperature, smoothing)
    model, measured = run.train_network(name, model, criterion)
    artefact.save(model, architecture, run.folder, weights)
    saved = run.place(artefact.load(run.folder, run.folder / weights))
    run.session.finish(name, {**measured, "accuracy": run.accuracy(saved)})
    return run.session.results[name]


def _target(target: int, found: Architecture, space: SearchSpace) -> dict[str, Any]:
    return {
        "macs": target,
        "ratio": target / space.unpruned.macs(),
        "reached": target_reached(found.macs(), target),
    }


def _pruned(
    found: Architecture, unpruned: Architecture, distilled: dict[str, Any] | None, plain: dict[str, Any] | None
) -> Pruned:
    main = distilled or plain
    assert main is not None
    return Pruned(
        accuracy=main["accuracy"],
        accuracy_without_distillation=plain["accuracy"] if plain and distilled else None,
        macs=found.macs(),
        macs_ratio=found.macs() / unpruned.macs(),
        parameters=found.parameters(),
        sparsity=1 - found.parameters() / unpruned.parameters(),
    )


def _seconds(parts: dict[str, float], elapsed: float) -> Seconds:
    """Of a resumed run the phases count whole, so their sum can exceed the time since it went on."""
    derived = [parts[name] for name in ("distill", "compare") if name in parts]
    return Seconds(parts["teacher"], parts["search"], sum(derived), max(elapsed, sum(parts.values())))


def _notes(config: Config) -> tuple[str, ...]:
    notes = []
    if config.run.max_steps:
        notes.append(f"every epoch ended after {config.run.max_steps} steps (--max-steps), so accuracies mean little")
    if config.data.limit:
        notes.append(f"at most {config.data.limit} images were used (--limit)")
    if config.distill.teacher:
        notes.append(f"teacher loaded from {config.distill.teacher}, its training time is not counted")
    if not config.distill.enabled:
        notes.append("trained without distillation")
    return tuple(notes)
