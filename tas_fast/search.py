"""`python -m tas_fast.search`: train the unpruned network, search a smaller architecture, distil, evaluate, report (Algorithm 1 of TAS as a whole)."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import logging
import os
import shlex
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
import yaml
from torch import nn
from torchvision.transforms import v2

import tas_fast
from tas_fast import _backend, artefact
from tas_fast.architecture import Architecture
from tas_fast.cli import config_parser, given_flags, read_config, run_program
from tas_fast.config import Config, parse_target
from tas_fast.data import Augment, build_loader, default_augment
from tas_fast.distill import CrossEntropy, Distillation
from tas_fast.engine import Interrupted, Interruption, Phase, Precision, Session, Supervised, accuracy, train
from tas_fast.errors import UsageError, UserError
from tas_fast.files import write_atomic
from tas_fast.methods.tas import TAS, SearchSpace, Supernet
from tas_fast.models import build
from tas_fast.optim import cosine_lr, sgd
from tas_fast.report import MetricsLog, Pruned, Report, Seconds, Unpruned, write_report

PROGRAM = "python -m tas_fast.search"


def main(argv: Sequence[str] | None = None) -> int:
    """Run the program with `argv` (None: the process's own); returns the exit code."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    parser = config_parser(PROGRAM, "Search a smaller network, distil it from the unpruned one, and report.")
    arguments = parser.parse_args(argv)
    command = shlex.join([*shlex.split(PROGRAM), *(sys.argv[1:] if argv is None else argv)])
    if arguments.resume:
        folder, config = _resumed(arguments)
    else:
        config = read_config(arguments)
        folder = Path(config.run.output) / (config.run.experiment or _default_name(config))
        if (folder / "config.yaml").exists():
            raise UsageError(f"{folder} already holds a run; continue it with --resume {folder} or choose another --experiment")
    try:
        report = run(config, folder, command=command, resume=bool(arguments.resume))
    except Interrupted as stop:
        print(f"stopped by {stop}; continue with: {PROGRAM} --resume {shlex.quote(str(folder))}", file=sys.stderr)
        return 128 + stop.signum
    print(report.summary_table())
    print(f"\nresults in {folder}: report.html, model.safetensors, architecture.json")
    if arguments.json:
        print(json.dumps(report.to_dict()))
    return 0


@dataclass
class Run:
    """What all phases of one run share."""

    config: Config
    folder: Path
    device: torch.device
    session: Session
    space: SearchSpace
    test_loader: Any

    def loader(self, split: str, stream: str = "") -> Any:
        return _loader(self.config, split, self.device, stream)

    def precision(self) -> Precision:
        return Precision(self.device, self.config.run.amp, self.config.run.amp_dtype)

    def place(self, model: nn.Module) -> nn.Module:
        layout = torch.channels_last if self.config.run.channels_last else torch.contiguous_format
        return model.to(self.device, memory_format=layout)

    def accuracy(self, model: nn.Module) -> float:
        return accuracy(model, self.test_loader, self.precision())


def run(config: Config, folder: str | Path, *, command: str = "", resume: bool = False) -> Report:
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
    device = _device(config)
    test_loader = _loader(config, "test", device)
    space = SearchSpace(
        config.model.name, test_loader.num_classes, config.method.search, test_loader.in_channels, test_loader.image_size
    )
    target = reachable_target(config, space)
    _check_fragments(config, space)
    backend = _backend.summary(device.type)
    print(yaml.safe_dump(config.to_dict(), sort_keys=False), end="")
    print(f"device: {device}, {Precision(device, config.run.amp, config.run.amp_dtype)}\nbackend: {backend}", flush=True)
    folder.mkdir(parents=True, exist_ok=True)
    write_atomic(folder / "config.yaml", yaml.safe_dump(config.to_dict(), sort_keys=False))
    with Interruption() as interruption:
        session = Session(
            folder,
            lambda position: MetricsLog(folder, position),
            interruption,
            seconds=config.run.checkpoint_seconds,
            keep=config.run.checkpoint_history,
            resume=resume,
        )
        try:
            state = Run(config, folder, device, session, space, test_loader)
            teacher = _teacher(state)
            architecture = _search(state, target)
            distilled = _derived(state, architecture, "distill", teacher) if config.distill.enabled else None
            plain = None
            if config.distill.compare or not config.distill.enabled:
                plain = _derived(state, architecture, "compare", None)
        finally:
            session.metrics.close()
    report = _report(state, command, backend, target, architecture, distilled, plain, time.perf_counter() - began)
    write_report(folder, report, architecture.to_dict())
    return report


def reachable_target(config: Config, space: SearchSpace) -> int:
    """Return the MACs that `--target-macs` asks for. Raises `UsageError` with the reachable range when no candidate network has them."""
    ratio, amount = parse_target(config.method.target_macs)
    unpruned, smallest = space.unpruned.macs(), space.smallest().macs()
    target = round(ratio * unpruned) if amount is None and ratio is not None else amount
    assert target is not None
    if not smallest <= target <= unpruned:
        raise UsageError(
            f"target of {target / 1e6:.4g} M MACs is out of reach: {config.method.search} search of {space.model} spans "
            f"{smallest / 1e6:.4g} M to {unpruned / 1e6:.4g} M (ratios {smallest / unpruned:.3f} to 1)"
        )
    return target


def _teacher(run: Run) -> nn.Module | None:
    """The unpruned network, trained here or loaded; its accuracy in the session's results."""
    config, space, path = run.config, run.space, run.folder / "teacher.safetensors"
    torch.manual_seed(_seed(config, "teacher"))
    model = build(space.model, space.num_classes, space.unpruned)
    if config.distill.teacher or run.session.finished("teacher"):
        source = path if run.session.finished("teacher") else Path(str(config.distill.teacher))
        _load_weights(model, source)
        model = run.place(model)
    else:
        model = run.place(model)
        measured = _train(run, "teacher", model, CrossEntropy(config.train.label_smoothing))
        model = measured.pop("model")
        _save_weights(model, path)
        run.session.finish("teacher", measured | {"accuracy": run.accuracy(model)})
        return model
    if not run.session.finished("teacher"):
        _save_weights(model, path)
        run.session.finish("teacher", {"seconds": 0.0, "accuracy": run.accuracy(model)})
    return model


def _search(run: Run, target: int) -> Architecture:
    """The architecture that the supernet ends with, written to the run's folder."""
    config, space, path = run.config, run.space, run.folder / artefact.ARCHITECTURE
    if run.session.finished("search"):
        return Architecture.from_dict(run.session.results["search"]["architecture"])
    torch.manual_seed(_seed(config, "search"))
    supernet = Supernet(
        space.model,
        space.num_classes,
        space.search,
        in_channels=space.in_channels,
        image_size=space.image_size,
        relu_after_addition=config.method.relu_after_addition,
    )
    supernet = run.place(supernet)  # type: ignore[assignment]
    method = TAS(supernet, config.method, target, _seed(config, "sampling"))
    loader = run.loader("search")
    write_atomic(run.folder / "halves.json", json.dumps(loader.halves))
    settings = config.method
    phase = Phase(
        name="search",
        model=supernet,
        method=method,
        loader=loader,
        optimizer=sgd(
            supernet.weight_parameters(),
            lr=settings.lr,
            momentum=settings.momentum,
            nesterov=settings.nesterov,
            weight_decay=settings.weight_decay,
        ),
        learning_rate=_schedule(settings.lr, settings.epochs, settings.warmup_epochs),
        epochs=settings.epochs,
        precision=run.precision(),
        clip_grad=settings.clip_grad,
        max_steps=config.run.max_steps,
    )
    measured = train(phase, run.session)
    architecture = method.result(supernet)
    architecture.to_json(path)
    run.session.finish("search", measured | {"architecture": architecture.to_dict()})
    return architecture


def _derived(run: Run, architecture: Architecture, name: str, teacher: nn.Module | None) -> dict[str, Any]:
    """Train the found network from scratch, with the teacher's help or without; returns its accuracy and seconds."""
    if run.session.finished(name):
        return run.session.results[name]
    config = run.config
    torch.manual_seed(_seed(config, name))
    model = run.place(build(architecture.model, architecture.num_classes, architecture))
    settings = config.distill
    criterion: Callable[..., torch.Tensor] = CrossEntropy(config.train.label_smoothing)
    if teacher is not None:
        criterion = Distillation(teacher, settings.alpha, settings.temperature)
    measured = _train(run, name, model, criterion)
    model = measured.pop("model")
    if name == "distill" or not settings.enabled:
        artefact.save(model, architecture, run.folder)
        model = run.place(artefact.load(run.folder))  # what is reported is what was saved
    else:
        _save_weights(model, run.folder / "model_without_distillation.safetensors")
    run.session.finish(name, measured | {"accuracy": run.accuracy(model)})
    return run.session.results[name]


def _train(run: Run, name: str, model: nn.Module, criterion: Callable[..., torch.Tensor]) -> dict[str, Any]:
    """Train a plain network; returns the measurements and under "model" the network to keep (the moving average where one is asked for)."""
    settings, average = run.config.train, None
    if settings.ema_decay:
        update = torch.optim.swa_utils.get_ema_multi_avg_fn(settings.ema_decay)
        average = torch.optim.swa_utils.AveragedModel(model, multi_avg_fn=update, use_buffers=True)
    kept = model if average is None else average.module
    mixup = v2.MixUp(alpha=settings.mixup_alpha, num_classes=run.space.num_classes) if settings.mixup_alpha else None
    phase = Phase(
        name=name,
        model=model,
        method=Supervised(criterion, mixup),
        loader=run.loader("train", name),
        optimizer=sgd(
            model.parameters(),
            lr=settings.lr,
            momentum=settings.momentum,
            nesterov=settings.nesterov,
            weight_decay=settings.weight_decay,
        ),
        learning_rate=_schedule(settings.lr, settings.epochs, settings.warmup_epochs),
        epochs=settings.epochs,
        precision=run.precision(),
        compiled=torch.compile(model) if run.config.run.torchcompile else None,  # type: ignore[arg-type]
        average=average,
        evaluate=lambda: run.accuracy(kept),
        clip_grad=settings.clip_grad,
        max_steps=run.config.run.max_steps,
    )
    measured = train(phase, run.session)
    return measured | {"model": kept}


def _report(
    run: Run,
    command: str,
    backend: str,
    target: int,
    architecture: Architecture,
    distilled: dict[str, Any] | None,
    plain: dict[str, Any] | None,
    elapsed: float,
) -> Report:
    config, unpruned, results = run.config, run.space.unpruned, run.session.results
    macs, parts = architecture.macs(), {name: result["seconds"] for name, result in results.items()}
    main = distilled or plain
    assert main is not None
    method = config.method
    return Report(
        command=command or PROGRAM,
        version=tas_fast.__version__,
        device=_device_name(run.device),
        backend=backend,
        seed=config.run.seed,
        dataset=config.data.dataset,
        model=architecture.model,
        method="tas",
        target={"macs": target, "ratio": target / unpruned.macs(), "reached": abs(macs - target) <= 0.05 * target},
        unpruned=Unpruned(results["teacher"]["accuracy"], unpruned.macs(), unpruned.parameters()),
        pruned=Pruned(
            accuracy=main["accuracy"],
            accuracy_without_distillation=plain["accuracy"] if plain else None,
            macs=macs,
            macs_ratio=macs / unpruned.macs(),
            parameters=architecture.parameters(),
            sparsity=1 - architecture.parameters() / unpruned.parameters(),
        ),
        seconds=Seconds(
            parts["teacher"],
            parts["search"],
            sum(parts.get(name, 0.0) for name in ("distill", "compare")),
            max(elapsed, sum(parts.values())),
        ),
        search_step_ms=results["search"]["step_ms"],
        images_per_second=results["search"]["images_per_second"],
        notes=(f"{method.search} search, K = {method.num_fragments}, derived by {method.derive}",),
    )


def _resumed(arguments: Any) -> tuple[Path, Config]:
    folder = Path(arguments.resume)
    if not (folder / "config.yaml").is_file():
        raise UsageError(f"cannot resume {folder}: it has no config.yaml, so it is not the folder of a run")
    changed = given_flags(arguments) + [name for name in ("recipe", "config", "set") if getattr(arguments, name)]
    if changed:
        raise UsageError(f"--resume continues with the run's own settings; remove {', '.join(changed)}")
    arguments.config = str(folder / "config.yaml")
    return folder, read_config(arguments)


def _default_name(config: Config) -> str:
    return f"{time.strftime('%Y%m%d-%H%M%S')}-tas-{config.model.name}-{config.data.dataset}-s{config.run.seed}"


def _device(config: Config) -> torch.device:
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise UsageError(f"WORLD_SIZE is {os.environ['WORLD_SIZE']}: this version searches in one process; start it without torchrun")
    name = config.run.device
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError:
        raise UsageError(f"unknown device {name!r}; use auto, cpu, cuda or cuda:N") from None
    if device.type == "cuda" and not (torch.cuda.is_available() and (device.index or 0) < torch.cuda.device_count()):
        raise UsageError(f"device {name} asked for, but PyTorch sees {torch.cuda.device_count()} CUDA devices; use --device cpu")
    if device.type not in ("cpu", "cuda"):
        raise UsageError(f"device {name} is not supported; use auto, cpu, cuda or cuda:N")
    return device


def _device_name(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"cpu, {torch.backends.cpu.get_cpu_capability()}, {torch.get_num_threads()} threads"


def _loader(config: Config, split: str, device: torch.device, stream: str = "") -> Any:
    data = config.data
    dtype = torch.float32
    return build_loader(
        data.dataset,
        data.data_dir,
        split,
        data.batch_size,
        loader=data.loader,
        workers=data.workers,
        device=device,
        image_size=data.image_size,
        seed=_seed(config, f"data {stream}") if split != "search" else _seed(config, "halves"),
        augment=_augment(config),
        channels_last=config.run.channels_last,
        dtype=dtype,
    )


def _augment(config: Config) -> Augment:
    """The data set's augmentation with what the config says otherwise."""
    data = config.data
    given = {"crop_padding": data.crop_padding, "flip": data.flip, "cutout": data.cutout or None}
    return dataclasses.replace(default_augment(data.dataset), **{name: value for name, value in given.items() if value is not None})


def _check_fragments(config: Config, space: SearchSpace) -> None:
    count, candidates = config.method.num_fragments, min(map(len, space.widths))
    if space.search != "depth" and count > candidates:
        raise UsageError(f"--num-fragments {count} is more than the {candidates} width candidates of each convolution of {space.model}")


def _seed(config: Config, purpose: str) -> int:
    """A seed of its own for everything random, so that phases do not depend on what ran before them."""
    digest = hashlib.sha256(f"{config.run.seed} {purpose}".encode()).digest()
    return int.from_bytes(digest[:7], "little")


def _schedule(base: float, epochs: int, warmup_epochs: int) -> Callable[[float], float]:
    return lambda position: cosine_lr(position, base=base, epochs=epochs, warmup_epochs=warmup_epochs)


def _save_weights(model: nn.Module, path: Path) -> None:
    write_atomic(path, safetensors.torch.save({k: v.detach().cpu().contiguous() for k, v in model.state_dict().items()}))


def _load_weights(model: nn.Module, path: Path) -> None:
    state, expected = artefact.read_weights(path), model.state_dict()
    wrong = sorted(n for n in expected.keys() | state.keys() if n not in state or n not in expected or state[n].shape != expected[n].shape)
    if wrong:
        raise UserError(f"teacher {path} does not fit the unpruned network in {len(wrong)} tensors, first {wrong[0]}")
    model.load_state_dict(state)


if __name__ == "__main__":
    run_program(main)
