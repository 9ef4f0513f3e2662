"""The direction of imports, fresh interpreters, and the deletion test: without any one method the rest stands."""

import ast
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tas_fast.methods import METHODS

ROOT = Path(__file__).resolve().parents[1]
# A module may import from its own group and from the groups before it. Modules that no group names are programs.
GROUPS = (
    {"errors", "config", "files", "_backend"},
    {"architecture"},
    {"ops"},
    {"nn"},
    {"models"},
    {"surgery", "cost", "distill", "optim", "data", "checkpoint", "artefact"},
    {"engine"},
    {"report"},
    {"methods"},
)
LEVEL = {name: level for level, group in enumerate(GROUPS) for name in group}
# These two import torch, the standard library, and of the package only what stands here.
ONLY_TORCH = {"ops": {"ops", "_backend", "errors"}, "nn": {"nn", "ops", "_backend", "errors"}}


def module_files(root: Path = ROOT) -> dict[str, Path]:
    """Module name -> file of everything in the package but the kernels."""
    files = {}
    for path in sorted((root / "tas_fast").rglob("*.py")):
        parts = path.relative_to(root).with_suffix("").parts
        if "kernels" not in parts:
            files[".".join(parts).removesuffix(".__init__")] = path
    return files


def imported_modules(path: Path, package: str = "") -> list[str]:
    """Full names in all import statements of a file, also those inside functions; `from a import b` yields a.b."""
    names = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                parents = package.split(".")[: len(package.split(".")) - node.level + 1]
                base = ".".join([*parents, *filter(None, [base])])
            names += [f"{base}.{alias.name}" for alias in node.names]
    return names


def part_of(module: str) -> str:
    """The part of the package a module belongs to: tas_fast.ops.gumbel_topk -> ops."""
    return module.split(".")[1] if "." in module else ""


def package_imports(module: str, path: Path) -> list[str]:
    package = module if path.name == "__init__.py" else module.rpartition(".")[0]
    return [name for name in imported_modules(path, package) if name.split(".")[0] == "tas_fast"]


MODULES = module_files()
OPERATORS = [module for module in MODULES if part_of(module) == "ops"]
IN_METHODS = [module for module in MODULES if part_of(module) == "methods" and module.count(".") >= 2]


@pytest.mark.parametrize("module", [module for module in MODULES if module != "tas_fast"])
def test_imports_point_to_the_left(module):
    level = LEVEL.get(part_of(module), len(GROUPS))
    names = [
        name for name in package_imports(module, MODULES[module]) if name not in ("tas_fast", "tas_fast.__version__")
    ]
    late = [name for name in names if part_of(name) == "kernels"]
    assert not late or part_of(module) == "ops", "only operators reach kernels"
    wrong = [name for name in names if name not in late and LEVEL.get(part_of(name), len(GROUPS)) > level]
    assert not wrong


@pytest.mark.parametrize("module", [module for module in MODULES if part_of(module) in ONLY_TORCH])
def test_operators_and_layers_import_torch_only(module):
    allowed = ONLY_TORCH[part_of(module)]
    package = module if MODULES[module].name == "__init__.py" else module.rpartition(".")[0]
    for name in imported_modules(MODULES[module], package):
        top = name.split(".")[0]
        if top == "tas_fast":
            assert part_of(name) in allowed | {"kernels"}
        else:
            assert top == "torch" or top in sys.stdlib_module_names


@pytest.mark.parametrize("module", OPERATORS)
def test_operators_reach_kernels_only_inside_functions(module):
    tree = ast.parse(MODULES[module].read_text(encoding="utf-8"))
    statements = [ast.unparse(node) for node in tree.body if isinstance(node, ast.Import | ast.ImportFrom)]
    assert not [text for text in statements if "kernels" in text]


@pytest.mark.parametrize("path", sorted((ROOT / "kernels").glob("*.py")), ids=lambda path: path.name)
def test_kernels_import_torch_and_triton_only(path):
    for name in imported_modules(path, "tas_fast.kernels"):
        top = name.split(".")[0]
        assert top in {"torch", "triton"} | sys.stdlib_module_names or name.startswith("tas_fast.kernels.")


@pytest.mark.parametrize("module", IN_METHODS)
def test_methods_do_not_import_each_other(module):
    own = module.split(".")[2]
    for name in package_imports(module, MODULES[module]):
        if part_of(name) == "methods":
            assert name.split(".")[2] == own


def test_every_method_is_listed_and_every_listed_method_exists():
    folder = ROOT / "tas_fast" / "methods"
    files, folders = folder.glob("[!_]*.py"), folder.glob("*/__init__.py")
    found = {path.stem for path in files} | {path.parent.name for path in folders}
    assert {module.rpartition(".")[2] for module in METHODS.values()} == found


def run_fresh(code: str, *, cwd: Path = ROOT, **environment: str) -> str:
    """Run code in a fresh interpreter; return what it printed."""
    environment = {**os.environ, "PYTHONPATH": str(cwd), "PYTHONDONTWRITEBYTECODE": "1", **environment}
    result = subprocess.run(
        [sys.executable, "-c", code],
        cwd=cwd,
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert result.returncode == 0, result.stderr
    return result.stdout


IMPORT_EVERYTHING = """
import importlib, pathlib, sys
for path in sorted(pathlib.Path("tas_fast").rglob("*.py")):
    parts = path.with_suffix("").parts
    if "kernels" not in parts and parts[-1] != "__main__":
        importlib.import_module(".".join(parts).removesuffix(".__init__"))
"""
WITHOUT_TRITON = "import sys; sys.modules['triton'] = None\n"
ONE_CALL = """
import torch, tas_fast.ops
print(tas_fast.ops.channel_interpolation(torch.arange(4.0).view(1, 4, 1, 1), 2).flatten().tolist())
"""


def test_package_itself_imports_neither_torch_nor_its_parts():
    code = "import sys, tas_fast; print('torch' in sys.modules, [m for m in sys.modules if m.startswith('tas_fast.')])"
    assert run_fresh(code) == "False []\n"


@pytest.mark.parametrize(
    ("prelude", "backend"), [("", "reference"), (WITHOUT_TRITON, "")], ids=["reference", "without_triton"]
)
def test_every_module_imports_in_a_fresh_interpreter(prelude, backend):
    assert run_fresh(prelude + IMPORT_EVERYTHING + ONE_CALL, TAS_FAST_BACKEND=backend) == "[0.5, 2.5]\n"


def test_kernels_refuse_a_second_name():
    code = "import tas_fast.kernels\ntry:\n    import kernels\nexcept ImportError as error:\n    print(error)"
    assert run_fresh(code) == "import this package as tas_fast.kernels, not as kernels\n"


def without_method(name: str, root: Path) -> None:
    """Copy the library to `root` and delete the method with its line, programs, recipes, layers and tests."""
    ignored = shutil.ignore_patterns("__pycache__", "*.so")
    for folder in ("tas_fast", "tests", "kernels"):
        shutil.copytree(ROOT / folder, root / folder, ignore=ignored, symlinks=True)
    shutil.copy(ROOT / "pyproject.toml", root)
    layers_before = layers_in_use(root)
    target = METHODS[name]
    path = root.joinpath(*target.split("."))
    shutil.rmtree(path, ignore_errors=True)
    path.with_suffix(".py").unlink(missing_ok=True)
    remove_line(root / "tas_fast/methods/__init__.py", f'"{target}"')
    gone = {target}
    remove_programs(root, gone)
    for layer in layers_before - layers_in_use(root):
        gone |= remove_layer(root, layer)
    for recipe in root.glob(f"tas_fast/recipes/{name}*.yaml"):
        recipe.unlink()
    remove_tests(root / "tests", gone)


def remove_line(path: Path, text: str) -> None:
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
    kept = [line for line in lines if text not in line]
    assert len(kept) == len(lines) - 1, f"{text} must stand in one line of {path.name}"
    path.write_text("".join(kept), encoding="utf-8")


def remove_programs(root: Path, gone: set[str]) -> None:
    """Delete the programs that import what is gone, then those that import these."""
    while True:
        modules = module_files(root)
        users = {module for module, path in modules.items() if uses(package_imports(module, path), gone)}
        if not users:
            return
        for module in users:
            assert part_of(module) not in LEVEL, f"{module} is shared and must not import a method"
            modules[module].unlink()
        gone |= users


def layers_in_use(root: Path) -> set[str]:
    """Modules of nn/ that something outside nn/__init__.py imports, directly or by a name from nn/__init__.py."""
    modules = module_files(root)
    index = modules.pop("tas_fast.nn")
    homes = {f"tas_fast.nn.{name.rpartition('.')[2]}": name.rpartition(".")[0] for name in imported_modules(index)}
    used = {name for module, path in modules.items() for name in package_imports(module, path)}
    return {homes.get(name, name.rpartition(".")[0]) for name in used if part_of(name) == "nn"} & set(modules)


def remove_layer(root: Path, layer: str) -> set[str]:
    """Delete a module of nn/ and its import in nn/__init__.py; return the names that went with it."""
    module_files(root)[layer].unlink()
    index = root / "tas_fast/nn/__init__.py"
    tree = ast.parse(index.read_text(encoding="utf-8"))
    own = [node for node in tree.body if isinstance(node, ast.ImportFrom) and node.module == layer]
    names = {alias.name for node in own for alias in node.names}
    tree.body = [node for node in tree.body if node not in own]
    for node in ast.walk(tree):
        if isinstance(node, ast.List | ast.Tuple):
            node.elts = [item for item in node.elts if not (isinstance(item, ast.Constant) and item.value in names)]
    index.write_text(ast.unparse(tree), encoding="utf-8")
    return {layer, *(f"tas_fast.nn.{name}" for name in names)}


def remove_tests(folder: Path, gone: set[str]) -> None:
    """Delete the test files that need what is gone, also through a helper beside them."""
    while True:
        users = {path for path in folder.glob("*.py") if uses(imported_modules(path), gone)}
        if not users:
            return
        for path in users:
            path.unlink()
        gone |= {path.stem for path in users}


def uses(names: list[str], gone: set[str]) -> bool:
    return any(name == module or name.startswith(f"{module}.") for name in names for module in gone)


COLLECT_QUICK_TESTS = """
import pytest, sys
sys.exit(pytest.main(["--collect-only", "-q", "-m", "not slow", "-p", "no:cacheprovider", "tests"]))
"""


@pytest.mark.parametrize("name", sorted(METHODS))
def test_library_stands_without_any_one_method(name, tmp_path):
    without_method(name, tmp_path)
    run_fresh(
        f"{IMPORT_EVERYTHING}\nfrom tas_fast.methods import METHODS\nassert {name!r} not in METHODS", cwd=tmp_path
    )
    assert "tests/test_backend.py::" in run_fresh(COLLECT_QUICK_TESTS, cwd=tmp_path)
