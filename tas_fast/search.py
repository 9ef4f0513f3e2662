"""`python -m tas_fast.search`: from an unpruned network to a smaller one, distilled, saved and reported.

Torch is imported after the command line has been read, so that help and mistakes are answered at once.
"""

from __future__ import annotations

import json
import logging
import shlex
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from tas_fast.cli import config_parser, given_settings, read_config, run_program
from tas_fast.config import Config
from tas_fast.errors import UsageError

if TYPE_CHECKING:
    from tas_fast.report import Report

PROGRAM = "python -m tas_fast.search"


def main(argv: Sequence[str] | None = None) -> int:
    """Run the program with `argv` (None: the process's own); returns the exit code."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    arguments = config_parser(PROGRAM, "Search a smaller network, distil it, and report.").parse_args(argv)
    command = shlex.join([*shlex.split(PROGRAM), *(sys.argv[1:] if argv is None else argv)])
    folder, config = _resumed(arguments) if arguments.resume else _fresh(arguments)
    from tas_fast.engine import Interrupted

    try:
        report = run(config, folder, command=command, resume=bool(arguments.resume))
    except Interrupted as stop:
        resume = f"{PROGRAM} --resume {shlex.quote(str(folder))}"
        print(f"stopped by {stop}, everything is saved; continue with: {resume}", file=sys.stderr)
        return 128 + stop.signum
    print(f"\n{report.summary_table()}\n\nresults in {folder}: report.html, model.safetensors, architecture.json")
    if arguments.json:
        print(json.dumps(report.to_dict()))
    return 0


def run(config: Config, folder: str | Path, *, command: str = PROGRAM, resume: bool = False) -> Report:
    """Return the report of a whole run into `folder`; `tas_fast.methods.tas.algorithm.run` documents it."""
    from tas_fast.methods.tas import algorithm

    return algorithm.run(config, folder, command=command, resume=resume)


def _fresh(arguments: Any) -> tuple[Path, Config]:
    config = read_config(arguments)
    stamp = time.strftime("%Y%m%d-%H%M%S")
    name = config.run.experiment or f"{stamp}-tas-{config.model.name}-{config.data.dataset}-s{config.run.seed}"
    folder = Path(config.run.output) / name
    if any(folder.glob("checkpoints/*.pt")):
        raise UsageError(f"{folder} already holds a run; continue it with --resume {folder}, or change --experiment")
    return folder, config


def _resumed(arguments: Any) -> tuple[Path, Config]:
    folder = Path(arguments.resume)
    if not (folder / "config.yaml").is_file():
        raise UsageError(f"cannot resume {folder}: it has no config.yaml, so it is not the folder of a run")
    changed = given_settings(arguments)
    if changed:
        raise UsageError(f"--resume continues with the run's own settings; remove {', '.join(changed)}")
    arguments.config = str(folder / "config.yaml")
    return folder, read_config(arguments)


def program() -> NoReturn:
    """Run as a program; the installed command `tas-fast-search` starts here."""
    run_program(main)


if __name__ == "__main__":
    program()
