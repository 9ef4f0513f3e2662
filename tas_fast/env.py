"""What this installation consists of and which backend serves each operator: `python -m tas_fast.env [--json]`."""

import importlib
import importlib.metadata
import importlib.util
import json
import platform
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from tas_fast import __version__, _backend
from tas_fast.cli import Parser, run_program

DALI_PACKAGES = ("nvidia-dali-cuda130", "nvidia-dali-cuda120", "nvidia-dali-cuda110")


def main(argv: Sequence[str] | None = None) -> int:
    parser = Parser(prog="python -m tas_fast.env", description=__doc__, allow_abbrev=False)
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    arguments = parser.parse_args(argv)
    environment = collect()
    print(json.dumps(environment) if arguments.json else format_environment(environment))
    return 0


def collect() -> dict[str, Any]:
    """Return versions, hardware, state of the backends and who serves each operator; JSON types only."""
    # Here and not at the top: an unusable TAS_FAST_BACKEND is then an error of one line.
    importlib.import_module("tas_fast.ops")
    return {
        "versions": versions(),
        "cpu": {"capability": torch.backends.cpu.get_cpu_capability(), "threads": torch.get_num_threads()},
        "cuda_devices": cuda_devices(),
        "backends": _backend.status(),
        "operators": {device_type: operators(device_type) for device_type in ("cpu", "cuda")},
    }


def versions() -> dict[str, str]:
    """Return name -> version text; "not installed" where a package is absent."""
    dali = (f"{version} ({name})" for name in DALI_PACKAGES if (version := _version(name)))
    return {
        "tas_fast": __version__,
        "python": f"{platform.python_version()} on {platform.platform()}",
        "torch": f"{torch.__version__} ({f'CUDA {torch.version.cuda}' if torch.version.cuda else 'CPU only'})",
        **{name: _version(name) or "not installed" for name in ("torchvision", "triton")},
        "dali": next(dali, "not installed"),
        "apex": describe_apex(),
    }


def describe_apex() -> str:
    """Return which project the importable `apex` is, as PyPI's package of that name has nothing to do with NVIDIA's."""
    spec = importlib.util.find_spec("apex")
    if spec is None:
        return "not installed"
    folders = spec.submodule_search_locations or []
    if not any((Path(folder) / "optimizers").is_dir() for folder in folders):
        return f"{_version('apex') or 'unknown version'}: not NVIDIA's apex but an unrelated package of that name"
    try:
        importlib.import_module("amp_C")
    except ImportError as error:
        return f"NVIDIA's apex without CUDA extensions ({error}): its optimizers cannot run"
    return "NVIDIA's apex with CUDA extensions (amp_C)"


def cuda_devices() -> list[str]:
    """Return one line per device: name, compute capability, memory."""
    lines = []
    for index in range(torch.cuda.device_count()):
        device = torch.cuda.get_device_properties(index)
        lines.append(f"{device.name}, sm_{device.major}{device.minor}, {device.total_memory / 2**30:.0f} GiB")
    return lines


def operators(device_type: str) -> dict[str, dict[str, str]]:
    """Return operator name -> {"backend", "why"} for tensors on `device_type`."""
    serving = _backend.serving(device_type)
    return {name: {"backend": backend, "why": _reason(backend, device_type)} for name, backend in serving.items()}


def _reason(backend: str, device_type: str) -> str:
    status = _backend.status()
    if backend != "reference":
        return status[backend]
    kinds = [kind for kind, served in _backend.BACKENDS.items() if served == device_type]
    usable = [kind for kind in kinds if _backend.available(kind)]
    if usable:
        return f"no {' or '.join(usable)} implementation of it"
    return "; ".join(f"{kind} {status[kind]}" for kind in kinds)


def format_environment(environment: dict[str, Any]) -> str:
    """Return the environment as a table for people."""
    cpu, devices = environment["cpu"], environment["cuda_devices"]
    rows = list(environment["versions"].items())
    rows.append(("cpu", f"{cpu['capability']}, {cpu['threads']} threads"))
    rows += [(f"cuda:{index}", text) for index, text in enumerate(devices)] or [("cuda", "no device")]
    rows += [(f"backend {name}", text) for name, text in environment["backends"].items()]
    for device_type, served in environment["operators"].items():
        absent = " (no device here)" if device_type == "cuda" and not devices else ""
        rows.append((f"operators on {device_type}{absent}", ""))
        rows += [(f"  {name}", f"{entry['backend']}: {entry['why']}") for name, entry in served.items()]
    width = max(len(name) for name, text in rows if text)
    return "\n".join(f"{name:<{width}}  {text}".rstrip() for name, text in rows)


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


if __name__ == "__main__":
    run_program(main)
