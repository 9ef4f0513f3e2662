"""Builds the two optional libraries tas_fast/_C (CPU) and tas_fast/_C_cuda against the torch that is installed.

TAS_FAST_BUILD=auto  build what can be built, say what cannot (default)
               off   build nothing; plain torch serves every operator
               cpu   build _C, and fail if that fails
               cuda  build _C and _C_cuda, and fail if either fails
"""

import glob
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from pathlib import Path

from setuptools import find_packages, setup

# Oldest torch whose stable interface the libraries use: one build serves this one and every later one.
TORCH_TARGET = "-DTORCH_TARGET_VERSION=0x020b000000000000"
MODES = ("auto", "off", "cpu", "cuda")
# Error messages name csrc/..., not the folder of whoever built the wheel.
PLAIN_PATHS = f"-ffile-prefix-map={os.getcwd()}/="


def main() -> None:
    mode = os.environ.get("TAS_FAST_BUILD", "auto")
    if mode not in MODES:
        raise SystemExit(f"TAS_FAST_BUILD must be one of {', '.join(MODES)}, got {mode!r}")
    # tas_fast/kernels is a symbolic link; a checkout that lost it still builds a complete package.
    package_dir = {} if os.path.isdir("tas_fast/kernels") else {"tas_fast.kernels": "kernels"}
    packages = sorted({*find_packages(include=["tas_fast*"]), "tas_fast.kernels"})
    setup(packages=packages, package_dir=package_dir, **extensions(mode))


def extensions(mode: str) -> dict:
    """Return the arguments of setup() that describe the extension modules; empty where none can be built."""
    if mode == "off":
        return {}
    toolkit = cuda_toolkit() if mode != "cpu" else None
    if toolkit:
        os.environ["CUDA_HOME"] = toolkit  # read when cpp_extension is imported
    try:
        import torch
        from torch.utils import cpp_extension
    except ImportError as error:
        return unavailable(mode, f"torch cannot be imported ({error}); use --no-build-isolation")
    if shutil.which(os.environ.get("CXX", "c++").split()[0]) is None and shutil.which("g++") is None:
        return unavailable(mode, "there is no C++ compiler")

    modules = [
        cpp_extension.CppExtension(
            "tas_fast._C",
            sorted(glob.glob("csrc/cpu/*.cpp")),
            depends=glob.glob("csrc/*.h") + glob.glob("csrc/cpu/*.h"),
            py_limited_api=True,
            extra_compile_args={"cxx": ["-O3", "-g0", "-fno-math-errno", "-fopenmp-simd", PLAIN_PATHS, TORCH_TARGET]},
        )
    ]
    if torch.version.cuda and toolkit:
        modules.append(cuda_extension(torch, cpp_extension, toolkit))
    elif mode == "cuda":
        unavailable(mode, "torch is a CPU build" if not torch.version.cuda else "there is no CUDA toolkit with nvcc")

    class Build(cpp_extension.BuildExtension):
        def build_extension(self, extension) -> None:
            try:
                super().build_extension(extension)
            except Exception as error:
                if mode != "auto":
                    raise
                say(f"{extension.name} was NOT built: {error}")

    return {
        "ext_modules": modules,
        "cmdclass": {"build_ext": Build},
        "options": {"bdist_wheel": {"py_limited_api": "cp310"}},
    }


def cuda_extension(torch, cpp_extension, toolkit: str):
    if not torch.cuda.is_available():
        os.environ.setdefault("TORCH_CUDA_ARCH_LIST", "8.0;9.0+PTX")
    return cpp_extension.CUDAExtension(
        "tas_fast._C_cuda",
        sorted(glob.glob("csrc/cuda/*.cu")),
        depends=glob.glob("csrc/*.h"),
        py_limited_api=True,
        library_dirs=[cudart_folder(toolkit)],
        extra_compile_args={
            "cxx": ["-O3", "-g0", PLAIN_PATHS, TORCH_TARGET, "-DUSE_CUDA"],
            "nvcc": ["-O3", f"-Xcompiler={PLAIN_PATHS}", TORCH_TARGET, "-DUSE_CUDA"],
        },
    )


def cuda_toolkit() -> str | None:
    """Return the folder of a CUDA toolkit with nvcc and the runtime, the named one first, else None."""
    candidates = [os.environ.get("CUDA_HOME"), os.environ.get("CUDA_PATH")]
    if nvcc := shutil.which("nvcc"):
        # nvcc on PATH may be a wrapper script far from its toolkit, so it is asked where it lives.
        answer = subprocess.run([nvcc, "-dryrun", "-E", "-x", "cu", os.devnull], capture_output=True, text=True)
        candidates += [os.path.realpath(top) for top in re.findall(r"TOP=(\S+)", answer.stderr + answer.stdout)]
    candidates += ["/usr/local/cuda", *sorted(glob.glob("/usr/local/cuda-*"), reverse=True)]
    candidates += sorted(glob.glob(sysconfig.get_paths()["purelib"] + "/nvidia/cu1*"), reverse=True)
    for candidate in candidates:
        if candidate and os.path.exists(f"{candidate}/bin/nvcc") and glob.glob(f"{candidate}/lib*/libcudart.so*"):
            return candidate
    return None


def cudart_folder(toolkit: str) -> str:
    """Return a folder that holds libcudart.so: toolkits from PyPI have it only with a number, which no linker finds."""
    for folder in glob.glob(f"{toolkit}/lib*"):
        if os.path.exists(f"{folder}/libcudart.so"):
            return folder
    folder = tempfile.mkdtemp(prefix="tas_fast-cudart-")
    Path(folder, "libcudart.so").symlink_to(sorted(glob.glob(f"{toolkit}/lib*/libcudart.so*"))[-1])
    return folder


def unavailable(mode: str, reason: str) -> dict:
    if mode != "auto":
        raise SystemExit(f"TAS_FAST_BUILD={mode}: the extension cannot be built: {reason}")
    say(f"the extension is NOT built: {reason}; plain torch serves every operator")
    return {}


def say(text: str) -> None:
    print(f"tas_fast: {text}", file=sys.stderr, flush=True)


main()
