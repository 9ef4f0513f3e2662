"""Triton kernels compiled ahead of time for three generations of devices: no spills, enough memory, wide accesses.

The table of all configurations: `python tests/compiled_kernels.py --full --markdown`.
"""

import importlib.util
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent
pytestmark = pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="Triton is not installed")


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(HERE.parent), str(HERE)])}
    environment.pop("TRITON_INTERPRET", None)
    return subprocess.run(
        [sys.executable, *arguments], env=environment, cwd=HERE.parent, capture_output=True, text=True, timeout=900
    )


def test_kernels_compile_without_spills_and_with_wide_accesses():
    result = run(str(HERE / "compiled_kernels.py"))
    assert result.returncode == 0, result.stderr[-4000:]
    rows = [json.loads(line) for line in result.stdout.splitlines()]
    assert {row["capability"] for row in rows} == {80, 90, 100}
    names = {"statistics", "prepare", "mix", "scale", "products", "diagonal_products", "gradients", "unmix", "unscale"}
    assert names | {"interpolate", "weighted_sum", "weighted_gradient", "combine"} == {row["kernel"] for row in rows}
    found = [
        f"{row['kernel']} sm_{row['capability']} {row['config']}: {row['faults']}" for row in rows if row["faults"]
    ]
    assert not found, "\n".join(found)


LIBRARY = HERE.parent / "tas_fast" / "_C_cuda.abi3.so"


@pytest.mark.skipif(not LIBRARY.exists(), reason="the CUDA library is not built")
def test_library_kernels_of_fragments_do_not_spill():
    """For the devices that the library has code for."""
    code = "import sys, compiled_kernels; print(compiled_kernels.disassembler(*sys.argv[1:]))"
    result = run("-c", code, "--dump-resource-usage", str(LIBRARY))
    assert result.returncode == 0, result.stderr
    found = re.findall(r"Function (\S*tas_fast\S*Sampling\S*):\s+REG:(\d+) STACK:(\d+)", result.stdout)
    assert len(found) >= 35
    assert [name for name, _, stack in found if stack != "0"] == []


BROKEN = """
import torch
from compiled_kernels import aggregate, compiled, recorded
launches = recorded(lambda: aggregate(64, 2, torch.bfloat16, "channels_last", 8))
launch = next(launch for launch in launches if launch.kernel.__name__ == "{kernel}")
{change}
print(compiled(launch, "", 80).faults())
"""


@pytest.mark.parametrize(
    ("kernel", "change", "fault"),
    [
        ("mix", "launch.constants['BLOCK_P'] = 256", "spills"),
        ("products", "launch.options['num_stages'] = 24", "shared memory"),
        ("statistics", "launch.attributes = {}", "loads of 16 bytes: 0"),
    ],
)
def test_check_finds_spills_too_much_shared_memory_and_narrow_accesses(kernel, change, fault):
    result = run("-c", BROKEN.format(kernel=kernel, change=change))
    assert fault in result.stdout, result.stdout + result.stderr[-2000:]
