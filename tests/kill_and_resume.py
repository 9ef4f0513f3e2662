"""Kill a search with SIGKILL at random moments, resume it, and compare what comes out with a run that nobody disturbed.

    python tests/kill_and_resume.py [KILLS] [search flags ...]

Without flags the run is the embedded one, shortened. A kill may hit anything: a checkpoint half written, an epoch half
trained, the report half drawn. Prints one line per kill and fails on the first difference.
"""

from __future__ import annotations

import multiprocessing
import os
import random
import sys
import tempfile
import time
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

from tas_fast.report import read_metrics, read_report

FILES = ("model.safetensors", "architecture.json", "teacher.safetensors", "halves.json")
MEASURED = ("seconds", "search_step_ms", "images_per_second", "command")
SHORTENED = ["--amp", "--epochs", "6", "--train-epochs", "6", "--compare", "--checkpoint-seconds", "0.2"]


def outcome(folder: Path) -> dict[str, Any]:
    """Return what a run ends with, without times: metrics, report, and the bytes of its files."""
    rows = read_metrics(folder / "metrics.jsonl")
    report = read_report(folder / "report.json").to_dict()
    return {
        "metrics": [{name: value for name, value in row.items() if name != "images_per_second"} for row in rows],
        "report": {name: value for name, value in report.items() if name not in MEASURED},
        **{name: (folder / name).read_bytes() for name in FILES},
    }


def start(argv: list[str]) -> BaseProcess:
    """Start the search in a process of its own, forked from one that has everything imported."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tas_fast.methods.tas.algorithm", "sklearn.datasets", "matplotlib.figure"])
    process = context.Process(target=_search, args=(argv,))
    process.start()
    return process


def kill_after(argv: list[str], seconds: float) -> bool:
    """Start the search and kill it after `seconds`; False when it had finished by then."""
    process = start(argv)
    process.join(seconds)
    if process.exitcode is None:
        process.kill()
        process.join()
        return True
    assert process.exitcode == 0, f"the search ended with {process.exitcode}"
    return False


def finish(argv: list[str]) -> float:
    """Run the search to its end and return the seconds it took."""
    began = time.monotonic()
    process = start(argv)
    process.join()
    assert process.exitcode == 0, f"the search ended with {process.exitcode}"
    return time.monotonic() - began


def again(argv: list[str], folder: Path) -> list[str]:
    """Return the command line that goes on in `folder`, which is the first one if the run got nowhere."""
    return ["--resume", str(folder)] if (folder / "config.yaml").exists() else argv


def _search(argv: list[str]) -> None:
    import torch

    from tas_fast.search import main

    torch.set_num_threads(1)
    with open(os.devnull, "w") as nowhere:
        sys.stdout = sys.stderr = nowhere
        sys.exit(main(argv))


def _script(kills: int, flags: list[str]) -> None:
    with tempfile.TemporaryDirectory() as name:
        place = Path(name)
        finish([*flags, "--output", name, "--experiment", "warm"])  # imports and caches
        seconds = finish([*flags, "--output", name, "--experiment", "whole"])
        expected, chance = outcome(place / "whole"), random.Random(0)
        print(f"an undisturbed run takes {seconds:.1f} s")
        for number in range(kills):
            moment, folder = chance.uniform(0, seconds), place / str(number)
            argv = [*flags, "--output", name, "--experiment", str(number)]
            killed = kill_after(argv, moment)
            finish(again(argv, folder))
            different = [part for part, value in outcome(folder).items() if value != expected[part]]
            print(f"kill {number + 1} at {moment:.2f} s{'' if killed else ' (too late)'}: {different or 'identical'}")
            if different:
                sys.exit(1)


if __name__ == "__main__":
    _script(int(sys.argv[1]) if len(sys.argv) > 1 else 10, sys.argv[2:] or SHORTENED)
