"""The CUDA kernels of the library, which no device runs here, as C++ with CPU threads in place of CUDA threads."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

HERE = Path(__file__).parent
SOURCES = HERE.parent / "csrc"
# What is not C++, or asks for a device: text in the source, and what stands for it.
REPLACEMENTS = {
    "kernel<<<grid, block_threads, bytes, stream>>>(arguments...)": (
        "launch_on_threads(kernel, grid, block_threads, bytes, stream, arguments...)"
    ),
    "reduction_blocks = 512, pass_blocks = 1024": "reduction_blocks = 3, pass_blocks = 3",
    "TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(y.get_device_index(), &current));": "",
    "const torch::stable::accelerator::DeviceGuard guard(y_.get_device_index());": "",
    "STABLE_TORCH_LIBRARY_IMPL(tas_fast, CUDA, m)": "STABLE_TORCH_LIBRARY_IMPL(tas_fast, CPU, m)",
}


def translated(folder: Path) -> Path:
    """Copy the sources to `folder` as C++ and return the one to compile."""
    (folder / "cuda").mkdir()
    for header in SOURCES.glob("*.h"):
        shutil.copy(header, folder)
    kernels = (SOURCES / "cuda" / "fragment_kernels.cuh").read_text(encoding="utf-8")
    kernels = kernels.replace("extern __shared__ double shared_memory[];", "")
    (folder / "cuda" / "fragment_kernels.cuh").write_text(kernels, encoding="utf-8")
    source = (SOURCES / "cuda" / "fragment_aggregate.cu").read_text(encoding="utf-8")
    for old, new in REPLACEMENTS.items():
        assert old in source, old
        source = source.replace(old, new)
    target = folder / "cuda" / "fragment_aggregate.cpp"
    target.write_text(source, encoding="utf-8")
    return target


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="there is no g++")
def test_cuda_kernels_match_the_reference_on_threads(tmp_path):
    source, library = translated(tmp_path), tmp_path / "emulated.so"
    torch_folder = Path(torch.__file__).parent
    folders = [HERE / "cuda_emulation", *(torch_folder / p for p in ("include", "include/torch/csrc/api/include"))]
    command = ["g++", "-O1", "-std=c++20", "-fPIC", "-shared", "-w", "-include", "cuda_runtime.h"]
    command += [*(f"-I{folder}" for folder in folders), "-DTORCH_TARGET_VERSION=0x020b000000000000", str(source)]
    command += ["-o", str(library), f"-L{torch_folder / 'lib'}", "-ltorch_cpu", "-ltorch", "-lc10", "-pthread"]
    built = subprocess.run(command, capture_output=True, text=True, timeout=600)
    assert built.returncode == 0, built.stderr[-4000:]
    result = subprocess.run(
        [sys.executable, str(HERE / "emulated_kernels.py"), str(library)],
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(HERE.parent), str(HERE)]), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert result.returncode == 0, result.stdout[-4000:] + result.stderr[-2000:]
    assert result.stdout == "0 differences\n"
