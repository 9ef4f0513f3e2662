"""Which implementations serve the operators in this process, and why the others do not.

`tas_fast.ops` defines every operator with a plain-torch reference. Faster implementations take over per device: `cpp`
on the CPU (library `_C`), `triton` or `cuda` (library `_C_cuda`) on CUDA devices. What is missing is not an error: the
reference serves, and `status()` and `summary()` say why. The environment variable TAS_FAST_BACKEND makes one backend
obligatory for its device, or with `reference` keeps all of them away.
"""

import importlib.metadata
import importlib.util
import os
import re
from pathlib import Path

import torch

from tas_fast.errors import UsageError, UserError

VARIABLE = "TAS_FAST_BACKEND"
BACKENDS = {"cpp": "cpu", "cuda": "cuda", "triton": "cuda"}
_LIBRARIES = {"cpp": "_C.abi3.so", "cuda": "_C_cuda.abi3.so"}
_FOLDER = Path(__file__).parent

_status: dict[str, str] = {}


def load() -> None:
    """Load what this machine can use, once; later calls do nothing.

    Raises:
        UsageError: TAS_FAST_BACKEND names no backend.
        UserError: TAS_FAST_BACKEND names a backend that cannot serve here; the text says why.
    """
    if _status:
        return
    forced = os.environ.get(VARIABLE, "")
    if forced not in ("", "reference", *BACKENDS):
        known = ", ".join(["reference", *BACKENDS])
        raise UsageError(f"{VARIABLE} must be one of {known} (or unset), got {forced!r}")
    found = {backend: _refusal(backend, forced) or _load(backend) for backend in BACKENDS}
    if forced in BACKENDS and not _usable(found[forced]):
        raise UserError(f"{VARIABLE}={forced} cannot be obeyed: {forced} {found[forced]}")
    _status.update(found)


def status() -> dict[str, str]:
    """Return for `cpp`, `cuda` and `triton` a text that begins with "loaded", "found", "not ..." or "failed"."""
    load()
    return dict(_status)


def available(backend: str) -> bool:
    """Return whether `backend` ("cpp", "cuda" or "triton") may serve operators in this process."""
    return _usable(status()[backend])


def serving(device_type: str) -> dict[str, str]:
    """Return operator name -> backend that the dispatcher calls for tensors on `device_type` ("cpu" or "cuda").

    Lists the operators that are registered, so import `tas_fast.ops` first. Backward operators go with their forward.
    """
    return {name: _server(name, device_type) for name in _operators()}


def summary(device_type: str) -> str:
    """Return one line for start-up and reports: which backend serves which operator, and the state of the extension."""
    by_backend: dict[str, list[str]] = {}
    for name, backend in serving(device_type).items():
        by_backend.setdefault(backend, []).append(name)
    order = sorted(by_backend, key=lambda backend: (backend == "reference", backend))
    parts = [f"{backend}: {', '.join(by_backend[backend])}" for backend in order]
    states = [f"{backend} {text}" for backend, text in status().items() if BACKENDS[backend] == device_type]
    return f"{'; '.join(parts) or 'no operators'} (extension: {'; '.join(states)})"


def _usable(text: str) -> bool:
    return text.startswith(("loaded", "found"))


def _refusal(backend: str, forced: str) -> str:
    """Say why `backend` stays away although it may be present; empty when nothing speaks against it."""
    if forced == "reference" or (forced and forced != backend and BACKENDS[forced] == BACKENDS[backend]):
        return f"not used: {VARIABLE}={forced}"
    if BACKENDS[backend] == "cuda" and torch.version.cuda is None:
        return f"not used: torch {torch.__version__} is built without CUDA"
    if BACKENDS[backend] == "cuda" and forced == backend and not torch.cuda.is_available():
        return "not usable: there is no CUDA device"
    return ""


def _load(backend: str) -> str:
    if backend == "triton":
        return _find_triton()
    path = _FOLDER / _LIBRARIES[backend]
    if not path.exists():
        return f"not built: {path} does not exist"
    try:
        torch.ops.load_library(path)
    except OSError as error:
        return f"failed: {' '.join(str(error).split())}"
    return f"loaded from {path}"


def _find_triton() -> str:
    if importlib.util.find_spec("triton") is None:
        return "not installed"
    return f"found triton {importlib.metadata.version('triton')}"


def _operators() -> list[str]:
    """Names in the namespace without overload, backward and private ones, sorted."""
    qualified = torch._C._dispatch_get_all_op_names()
    names = {name.removeprefix("tas_fast::").split(".")[0] for name in qualified if name.startswith("tas_fast::")}
    return sorted(name for name in names if not name.endswith("_backward") and not name.startswith("_"))


def _server(name: str, device_type: str) -> str:
    qualified, key = f"tas_fast::{name}", device_type.upper()
    if not torch._C._dispatch_has_kernel_for_dispatch_key(qualified, key):
        return "reference"
    if device_type == "cpu":
        return "cpp"
    # On CUDA both a library and a Triton launcher may be the owner; the dispatcher remembers the registering file.
    line = re.search(rf"^{key}: registered at (\S+)", torch._C._dispatch_dump(qualified), re.MULTILINE)
    return "cuda" if line and ".cu:" in line.group(1) else "triton"
