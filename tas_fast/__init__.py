"""Search, prune, distil and export smaller convolutional networks in PyTorch.

Importing the package is cheap: torch is imported by the parts that need it, when they are asked for.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tas_fast.architecture import Architecture as Architecture
    from tas_fast.artefact import load as load

__version__ = "0.1.0"

_PUBLIC = {"Architecture": "tas_fast.architecture", "load": "tas_fast.artefact"}

__all__ = ["Architecture", "__version__", "load"]


def __getattr__(name: str) -> Any:
    if name not in _PUBLIC:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_PUBLIC[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *_PUBLIC})
