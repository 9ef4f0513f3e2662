"""What a wheel and a source archive contain, and that a build says what it could not do."""

import os
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest
from packaging.requirements import Requirement

import tas_fast

ROOT = Path(__file__).resolve().parents[1]
SOURCES = ("tas_fast", "kernels", "csrc", "setup.py", "pyproject.toml", "MANIFEST.in", "LICENSE", "constraints.txt")


def copy_sources(folder: Path) -> Path:
    """Copy what a build reads, without the products of earlier builds."""
    ignored = shutil.ignore_patterns("__pycache__", "*.so", "*.egg-info")
    for name in SOURCES:
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, folder / name, symlinks=True, ignore=ignored)
        else:
            shutil.copy(ROOT / name, folder / name)
    return folder


def run_setup(folder: Path, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "setup.py", "-q", *arguments],
        cwd=folder,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=300,
    )


def build_wheel(folder: Path) -> Path:
    result = run_setup(folder, "bdist_wheel", TAS_FAST_BUILD="off")
    assert result.returncode == 0, result.stderr
    (wheel,) = (folder / "dist").glob("*.whl")
    return wheel


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_wheel(copy_sources(tmp_path_factory.mktemp("wheel")))


def test_wheel_without_extension_is_pure_and_holds_the_whole_package(wheel):
    assert wheel.name == f"tas_fast-{tas_fast.__version__}-py3-none-any.whl"
    content = set(zipfile.ZipFile(wheel).namelist())
    package = {path for path in (ROOT / "tas_fast").rglob("*") if path.is_file() and "__pycache__" not in path.parts}
    expected = {str(path.relative_to(ROOT)) for path in package if path.suffix != ".so"}
    assert expected - content == set()
    assert "tas_fast/kernels/__init__.py" in content


def test_wheel_installs_nothing_beside_the_package(wheel):
    tops = {name.split("/")[0] for name in zipfile.ZipFile(wheel).namelist()}
    assert tops == {"tas_fast", f"tas_fast-{tas_fast.__version__}.dist-info"}


def test_wheel_of_a_checkout_that_lost_the_symbolic_link_still_has_the_kernels(tmp_path):
    folder = copy_sources(tmp_path)
    (folder / "tas_fast" / "kernels").unlink()
    assert "tas_fast/kernels/__init__.py" in zipfile.ZipFile(build_wheel(folder)).namelist()


def test_wheel_works_where_it_is_unpacked(wheel, tmp_path):
    zipfile.ZipFile(wheel).extractall(tmp_path)
    code = "import tas_fast.kernels; from tas_fast import env; env.main([]); print(tas_fast.__file__)"
    result = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(tmp_path), "TAS_FAST_BACKEND": ""},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert f"backend cpp  not built: {tmp_path}" in re.sub(r"(backend cpp) +", r"\1  ", result.stdout)
    assert result.stdout.splitlines()[-1] == str(tmp_path / "tas_fast" / "__init__.py")


def test_source_archive_holds_what_a_build_needs_and_no_library(tmp_path):
    folder = copy_sources(tmp_path)
    (folder / "tas_fast" / "_C.abi3.so").touch()
    assert run_setup(folder, "sdist", TAS_FAST_BUILD="off").returncode == 0
    (archive,) = (folder / "dist").glob("*.tar.gz")
    with tarfile.open(archive) as opened:
        content = {name.partition("/")[2] for name in opened.getnames()}
    sources = {str(path.relative_to(folder)) for path in (folder / "csrc").rglob("*") if path.is_file()}
    assert sources | {"setup.py", "pyproject.toml", "constraints.txt", "kernels/__init__.py", "LICENSE"} <= content
    assert not [name for name in content if name.endswith(".so")]


@pytest.mark.parametrize("mode", ["cpu", "cuda"])
def test_strict_build_without_compiler_fails(mode, tmp_path):
    result = run_setup(copy_sources(tmp_path), "build_ext", TAS_FAST_BUILD=mode, PATH="", CXX="absent-compiler")
    assert result.returncode != 0
    assert f"TAS_FAST_BUILD={mode}: the extension cannot be built: there is no C++ compiler" in result.stderr


def test_automatic_build_without_compiler_succeeds_and_says_so(tmp_path):
    result = run_setup(copy_sources(tmp_path), "build_ext", TAS_FAST_BUILD="auto", PATH="", CXX="absent-compiler")
    assert result.returncode == 0
    assert "the extension is NOT built: there is no C++ compiler" in result.stderr


def test_failed_compilation_is_an_error_only_where_the_build_is_strict(tmp_path):
    folder = copy_sources(tmp_path)
    for source in (*folder.glob("csrc/cpu/*.cpp"), *folder.glob("csrc/cuda/*.cu")):
        source.write_text("#error out of order\n")
    assert run_setup(folder, "build_ext", TAS_FAST_BUILD="cpu").returncode != 0
    result = run_setup(folder, "build_ext", TAS_FAST_BUILD="auto")
    assert result.returncode == 0
    assert "tas_fast._C was NOT built" in result.stderr


def test_unknown_build_mode_is_answered_with_the_known_ones(tmp_path):
    result = run_setup(copy_sources(tmp_path), "build_ext", TAS_FAST_BUILD="gpu")
    assert "TAS_FAST_BUILD must be one of auto, off, cpu, cuda, got 'gpu'" in result.stderr


def test_every_requirement_is_pinned_within_its_range():
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pins = [Requirement(line) for line in lines if not line.startswith("#")]
    versions = {pin.name.lower(): str(pin.specifier).removeprefix("==") for pin in pins}
    for requirement in requirements_of_make():
        assert versions[requirement.name.lower()] in requirement.specifier, requirement


def requirements_of_make() -> list[Requirement]:
    """The dependencies and the extras `test` and `dev` of pyproject.toml, without the package itself."""
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    lists = re.findall(r"^(?:dependencies|test|dev) = \[(.*?)\]$", text, re.MULTILINE | re.DOTALL)
    assert len(lists) == 3
    return [Requirement(item) for part in lists for item in re.findall(r'"([^"]+)"', part) if "tas_fast" not in item]
