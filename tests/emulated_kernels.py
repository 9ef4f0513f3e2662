"""The library's CUDA kernels on CPU threads, held against the reference; test_kernels_emulated builds and runs this.

Usage: python tests/emulated_kernels.py LIBRARY. The library serves CPU tensors of this process alone.
"""

import importlib
import os
import sys
from collections.abc import Iterator
from dataclasses import replace

os.environ["TAS_FAST_BACKEND"] = "reference"

import torch
from kernel_cases import BLOCKED_CASES, CASES, Case
from torch import Tensor

import tas_fast.ops  # noqa: F401  defines the operators

reference = importlib.import_module("tas_fast.ops.fragment_aggregate")
TOLERANCE = {torch.float32: 3e-5, torch.float64: 1e-11, torch.bfloat16: 2e-2, torch.float16: 4e-3}
NCHW, NHWC = torch.contiguous_format, torch.channels_last
# Accesses of 16 bytes, several slices of 256 channels, several tiles and chunks, nothing at all.
MORE_CASES = {
    "packed bfloat16": Case((9, 14), 16, 16, 16, shape=(3, 4, 8), dtype=torch.bfloat16),
    "packed contiguous": Case((19, 28, 32, 7), 32, 32, 16, shape=(2, 6, 8), dtype=torch.float16, layout=NCHW),
    "float64": Case((3, 5, 8), 8, 8, 8, index=(2, 0), dtype=torch.float64),
    "many chunks": Case((9, 14), 16, 16, 8, shape=(4, 20, 16)),
    "slices, unaligned": Case((90, 300), 300, 320, 330, shape=(2, 2, 3)),
    "slices, aligned": Case((90, 400, 1, 512), 512, 512, 512, shape=(2, 2, 4)),
    "slices of y": Case((300,), 600, 320, 400, shape=(2, 2, 3), relu=False),
    "slices, contiguous": Case((90, 300), 600, 320, shape=(2, 2, 3), layout=NCHW),
    "empty": Case((3, 5, 8), 8, 8, 8, index=(2, 0), shape=(0, 3, 5)),
}


def cases() -> Iterator[tuple[str, Case]]:
    for name, case in (CASES | BLOCKED_CASES).items():
        yield f"{name}, training", case
        yield f"{name}, evaluation, contiguous", replace(case, training=False, layout=NCHW)
    yield "table, residual, contiguous", replace(CASES["table, residual"], layout=NCHW)
    yield from MORE_CASES.items()


def differences(case: Case) -> Iterator[str]:
    """Run both passes of the operator and its reference on the same data and name what differs."""
    arguments = case.forward_arguments()
    if case.dtype == torch.float64:
        arguments = [x.double() if isinstance(x, Tensor) and x.is_floating_point() else x for x in arguments]
    ours, theirs = ([x.clone() if isinstance(x, Tensor) else x for x in arguments] for _ in range(2))
    ours[0] = theirs[0] = arguments[0]
    with torch.no_grad():
        results = torch.ops.tas_fast.fragment_aggregate.default(*ours)
    expected = reference.fragment_aggregate_reference(*theirs)
    backward = case.backward_arguments(arguments, expected)
    gradients = torch.ops.tas_fast.fragment_aggregate_backward.default(*backward)
    expected_gradients = reference.fragment_aggregate_backward_reference(*backward)
    names = ("out", "mean", "rstd", "running_mean", "running_var", "y", "probs", "weight", "bias", "residual")
    pairs = zip([*results, *ours[5:7], *gradients], [*expected, *theirs[5:7], *expected_gradients], strict=True)
    for name, (result, truth) in zip(names, pairs, strict=True):
        if result.shape != truth.shape or result.dtype != truth.dtype:
            yield f"{name}: {result.dtype} {tuple(result.shape)}, expected {truth.dtype} {tuple(truth.shape)}"
        elif truth.numel() > 0:
            distance = (result.double() - truth.double()).abs().max().item()
            if not distance <= TOLERANCE[case.dtype] * max(truth.abs().max().item(), 1.0):
                yield f"{name}: {distance:.3g} from the reference"


def main(library: str) -> int:
    torch.manual_seed(0)
    torch.ops.load_library(library)
    failed = 0
    for name, case in cases():
        for difference in differences(case):
            failed += 1
            print(f"{name}: {difference}")
    print(f"{failed} differences")
    return int(failed > 0)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
