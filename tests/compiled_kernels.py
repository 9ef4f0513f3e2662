"""Compile Triton kernels as their launchers would launch them, without a device, and read the machine code.

A program, because compiling must not share a process with the interpreter: prints one JSON line per kernel and target.
`python tests/compiled_kernels.py` compiles representative configurations; `--full` all; `--markdown` prints a table.
"""

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from typing import Any

os.environ.setdefault("TRITON_DEFAULT_FP_FUSION", "1")

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from triton.runtime.jit import JITFunction

from tas_fast.kernels import channel_interpolation, fragment_aggregate, weighted_interpolation_sum

# Triton before 3.9 lets ptxas allocate registers less thoroughly.
STACK_LIMIT = 0 if tuple(map(int, triton.__version__.split(".")[:2])) >= (3, 9) else 16
SHARED_LIMIT = {80: 166912, 90: 232448, 100: 232448}  # bytes one block may have, CUDA programming guide
TYPES = {
    torch.float32: "fp32",
    torch.bfloat16: "bf16",
    torch.float16: "fp16",
    torch.int64: "i64",
    torch.int32: "i32",
}


@dataclass
class Launch:
    """What a launcher passed to one kernel."""

    kernel: Any
    signature: dict[str, str]
    constants: dict[str, Any]
    attributes: dict[tuple[int], list[list[Any]]]
    options: dict[str, int]


@dataclass
class Compiled:
    """A kernel for one target: registers a thread, bytes of stack and of shared memory, global accesses by width."""

    config: str
    kernel: str
    capability: int
    registers: int
    stack: int
    shared: int
    accesses: dict[str, int] = field(default_factory=dict)
    wide_loads: int = 0  # of 16 bytes, at least this many must be there
    wide_stores: int = 0

    def faults(self) -> list[str]:
        found = []
        if self.stack > STACK_LIMIT:
            found.append(f"spills: {self.stack} bytes of stack")
        if self.shared > SHARED_LIMIT[self.capability]:
            found.append(f"shared memory: {self.shared} of {SHARED_LIMIT[self.capability]} bytes")
        for kind, least in (("load", self.wide_loads), ("store", self.wide_stores)):
            if self.accesses.get(f"{kind}128", 0) < least:
                found.append(f"{kind}s of 16 bytes: {self.accesses.get(f'{kind}128', 0)}, at least {least} expected")
        return found


def recorded(call: Callable[[], object]) -> list[Launch]:
    """Run launchers on meta tensors and return what they would launch."""
    launches: list[Launch] = []

    def record(kernel: Any, *args: Any, grid: Any, warmup: bool, **options: Any) -> None:
        launches.append(launch_of(kernel, args, options))

    run, JITFunction.run = JITFunction.run, record
    try:
        call()
    finally:
        JITFunction.run = run
    return launches


def launch_of(kernel: Any, args: tuple[Any, ...], options: dict[str, Any]) -> Launch:
    """Type and specialise arguments as a launch does: 1 becomes a constant, multiples of 16 are known as such."""
    constants = {name: options.pop(name) for name in list(options) if name in kernel.arg_names}
    values = dict(zip(kernel.arg_names, args, strict=False))
    signature, attributes = {}, {}
    for position, name in enumerate(kernel.arg_names):
        value = values.get(name)
        if name in constants:
            signature[name] = "constexpr"
        elif value is None or (isinstance(value, int) and value == 1):
            signature[name], constants[name] = "constexpr", value
        elif isinstance(value, float):
            signature[name] = "fp32"
        else:
            signature[name] = "i32" if isinstance(value, int) else "*" + TYPES[value.dtype]
            if not isinstance(value, int) or value % 16 == 0:
                attributes[(position,)] = [["tt.divisibility", 16]]
    return Launch(kernel, signature, constants, attributes, options)


def compiled(launch: Launch, config: str, capability: int) -> Compiled:
    source = ASTSource(launch.kernel, launch.signature, launch.constants, launch.attributes)
    built = triton.compile(source, target=GPUTarget("cuda", capability, 32), options=launch.options)
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(built.asm["cubin"])
        file.flush()
        usage = disassembler("--dump-resource-usage", file.name)
        code = disassembler("-sass", file.name)
    registers, stack = (int(re.search(rf"{name}:(\d+)", usage)[1]) for name in ("REG", "STACK"))
    name, shared = launch.kernel.__name__, built.metadata.shared
    wide = expected_accesses(launch)
    return Compiled(config, name, capability, registers, stack, shared, accesses(code), *wide)


def disassembler(*arguments: str) -> str:
    tool = triton.knobs.nvidia.cuobjdump.path
    return subprocess.run([tool, *arguments], check=True, capture_output=True, text=True).stdout


def accesses(code: str) -> dict[str, int]:
    """Count global loads and stores by width in bits."""
    counts: dict[str, int] = {}
    for name, rest in re.findall(r"\b(LDG|LDGSTS|STG)\.E(\S*)", code):
        width = re.search(r"\.(128|64|U16|S16|U8|S8)", rest)
        bits = {None: 32, "128": 128, "64": 64, "U16": 16, "S16": 16, "U8": 8, "S8": 8}[width and width[1]]
        kind = f"{'store' if name == 'STG' else 'load'}{bits}"
        counts[kind] = counts.get(kind, 0) + 1
    return dict(sorted(counts.items()))


# Tiles of image batches that a kernel loads and stores, by the names of its arguments.
TILES = {
    "statistics": (("y",), ()),
    "scale": (("y", "residual"), ("out",)),
    "mix": (("y", "residual"), ("out",)),
    "products": (("grad_out", "out", "y"), ()),
    "diagonal_products": (("grad_out", "out", "y"), ()),
    "unscale": (("grad_out", "out", "y"), ("grad_y",)),
    "unmix": (("grad_out", "out", "y"), ("grad_y",)),
}


def expected_accesses(launch: Launch) -> tuple[int, int]:
    """Return how many 16-byte loads and stores per thread the tiles of the batch are worth.

    None in the contiguous layout where images do not begin at multiples of 16.
    """
    known = {launch.kernel.arg_names[position] for (position,) in launch.attributes}
    if not launch.constants.get("LAST", True) and "area" not in known:
        return 0, 0
    loads, stores = TILES.get(launch.kernel.__name__, ((), ()))
    threads = 32 * launch.options.get("num_warps", 4)

    def worth(names: tuple[str, ...]) -> int:
        total = 0
        for name in names:
            kind = launch.signature[name]
            if kind != "constexpr":
                size = 4 if kind == "*fp32" else 2
                tile = launch.constants["BLOCK_P"] * launch.constants["BLOCK_C"] * size
                total += max(tile // (16 * threads), 1)
        return total

    return worth(loads), worth(stores)


def aggregate(channels: int, fragments: int, dtype: torch.dtype, layout: str, side: int) -> object:
    """Forward and backward of one layer on meta tensors, batch 256, with residual and ReLU."""
    format = {"channels_last": torch.channels_last, "contiguous": torch.contiguous_format}[layout]
    y = torch.empty(256, channels, side, side, dtype=dtype, device="meta", memory_format=format)
    widths = torch.empty(8, dtype=torch.int64, device="meta")
    index = torch.empty(fragments, dtype=torch.int64, device="meta") if fragments > 1 else None
    widths = widths if fragments > 1 else widths[:1]
    probs = torch.empty(fragments, device="meta")
    table = torch.empty(widths.size(0), channels, device="meta")
    flags = (channels, True, True, 0.1, 1e-5)
    out, mean, rstd = fragment_aggregate.fragment_aggregate(
        y, widths, probs, table, table, table, table, y, index, *flags
    )
    return fragment_aggregate.fragment_aggregate_backward(
        out, y, out, widths, probs, table, table, mean, rstd, index, channels, channels, True, [True] * 5
    )


SIDES = {16: 32, 32: 16, 64: 56, 128: 28, 256: 14, 512: 7}
# Channels, K, type, layout: every block size and both arithmetics of the matrix kernels, and the diagonal ones.
REPRESENTATIVE = [
    (64, 2, torch.bfloat16, "channels_last"),
    (512, 8, torch.bfloat16, "channels_last"),
    (64, 2, torch.float32, "channels_last"),
    (256, 1, torch.bfloat16, "channels_last"),
]


def configurations(full: bool) -> Iterator[tuple[str, Callable[[], object]]]:
    rows = REPRESENTATIVE
    if full:
        rows = [
            (c, k, t, layout)
            for layout in ("channels_last", "contiguous")
            for t in (torch.bfloat16, torch.float32)
            for c in SIDES
            for k in (1, 2, 4, 8)
            if layout == "channels_last" or (k == 2 and c in (16, 64, 256))
        ]
    for channels, fragments, dtype, layout in rows:
        name = f"C={channels} K={fragments} {TYPES[dtype]} {layout}"
        yield name, lambda c=channels, k=fragments, t=dtype, f=layout: aggregate(c, k, t, f, SIDES[c])
    for dtype in (torch.bfloat16, torch.float32) if full else (torch.bfloat16,):
        yield f"interpolation 38 to 64 {TYPES[dtype]}", lambda t=dtype: interpolations(t)


def interpolations(dtype: torch.dtype) -> None:
    x, wide = (torch.empty(256, c, 56, 56, dtype=dtype, device="meta") for c in (38, 64))
    x, wide = x.to(memory_format=torch.channels_last), wide.to(memory_format=torch.channels_last)
    channel_interpolation.channel_interpolation(x, 64)
    channel_interpolation.channel_interpolation_backward(wide, 38)
    weights = torch.empty(3, device="meta")
    weighted_interpolation_sum.weighted_interpolation_sum([x, wide, wide], weights)
    weighted_interpolation_sum.weighted_interpolation_sum_backward(wide, [x, wide, wide], weights, [True, True])


def all_compiled(full: bool, capabilities: list[int]) -> Iterator[Compiled]:
    """Compile each distinct launch once per target; without `full`, one of those that differ in sizes alone."""
    seen = set()
    for config, call in configurations(full):
        for launch in recorded(call):
            flags = [(name, value) for name, value in launch.constants.items() if full or isinstance(value, bool)]
            key = (launch.kernel.__name__, *map(str, (launch.signature, flags, full and launch.attributes)))
            for capability in capabilities:
                if (key, capability) not in seen:
                    seen.add((key, capability))
                    yield compiled(launch, config, capability)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--full", action="store_true", help="every configuration, minutes")
    parser.add_argument("--markdown", action="store_true", help="a table in place of JSON lines")
    parser.add_argument("--capability", type=int, nargs="+", default=[80, 90, 100])
    options = parser.parse_args()
    if options.markdown:
        print("| configuration | kernel | sm | registers | stack | shared | global accesses by bits | fault |")
        print("|---|---|---|---|---|---|---|---|")
    for result in all_compiled(options.full, options.capability):
        if options.markdown:
            widths = ", ".join(f"{kind} {count}" for kind, count in result.accesses.items())
            print(
                f"| {result.config} | `{result.kernel}` | {result.capability} | {result.registers} | {result.stack} | "
                f"{result.shared} | {widths} | {'; '.join(result.faults())} |",
                flush=True,
            )
        else:
            print(json.dumps({**asdict(result), "faults": result.faults()}), flush=True)


if __name__ == "__main__":
    sys.exit(main())
