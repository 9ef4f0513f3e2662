"""Triton kernels with their launchers, one file per operator of `tas_fast.ops`; they register nothing.

The folder is imported as `tas_fast.kernels` through a symbolic link, so that wheels, checkouts and type checkers agree.
"""

# A second copy under the name `kernels` would have its own functions and caches.
if __name__ != "tas_fast.kernels":
    raise ImportError(f"import this package as tas_fast.kernels, not as {__name__}")
