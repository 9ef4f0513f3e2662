import json
import os
import subprocess
import sys

import pytest
import torch

import tas_fast.ops  # noqa: F401  registers the operators
from tas_fast import _backend, env
from tas_fast.errors import UsageError, UserError

USE_REFERENCE_ONLY = """
import sys, torch
from tas_fast import _backend, ops
print(ops.channel_interpolation(torch.arange(4.0).view(1, 4, 1, 1), 2).tolist())
print({*_backend.serving("cpu").values(), *_backend.serving("cuda").values()}, {*_backend.status().values()})
print("triton" in sys.modules)
"""


def run_python(code: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code], env={**os.environ, **environment}, capture_output=True, text=True, timeout=120
    )


@pytest.fixture
def unloaded(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """The module before its first `load()`, with TAS_FAST_BACKEND unset."""
    monkeypatch.setattr(_backend, "_status", {})
    monkeypatch.delenv(_backend.VARIABLE, raising=False)
    return monkeypatch


def test_status_says_for_every_backend_whether_and_why():
    assert set(_backend.status()) == {"cpp", "cuda", "triton"}
    assert all(text.startswith(("loaded from", "found", "not ", "failed: ")) for text in _backend.status().values())


def test_serving_lists_every_public_operator_once():
    served = _backend.serving("cpu")
    assert {"channel_interpolation", "fragment_aggregate", "gumbel_topk"} <= set(served)
    assert not [name for name in served if name.endswith("_backward") or name.startswith("_")]
    assert set(_backend.serving("cuda")) == set(served)


def test_channel_interpolation_is_served_by_the_extension_where_it_is_loaded():
    expected = "cpp" if _backend.available("cpp") else "reference"
    assert _backend.serving("cpu")["channel_interpolation"] == expected


def test_dispatcher_tells_a_python_launcher_from_the_cuda_library():
    library = torch.library.Library("tas_fast", "FRAGMENT")
    library.define("_probe(Tensor x) -> Tensor")
    assert _backend._server("_probe", "cuda") == "reference"
    library.impl("_probe", lambda x: x, "CUDA")
    assert _backend._server("_probe", "cuda") == "triton"
    library._destroy()


def test_summary_is_one_line_with_operators_and_extension_status():
    text = _backend.summary("cpu")
    assert "\n" not in text
    assert all(name in text for name in _backend.serving("cpu"))
    assert _backend.status()["cpp"] in text


def test_missing_library_is_reported_with_its_path(unloaded, tmp_path):
    unloaded.setattr(_backend, "_FOLDER", tmp_path)
    assert _backend.status()["cpp"] == f"not built: {tmp_path / '_C.abi3.so'} does not exist"


def test_damaged_library_is_reported_with_the_loader_s_reason(unloaded, tmp_path):
    (tmp_path / "_C.abi3.so").write_bytes(b"not a library")
    unloaded.setattr(_backend, "_FOLDER", tmp_path)
    assert _backend.status()["cpp"].startswith("failed: ")
    assert "\n" not in _backend.status()["cpp"]


def test_forced_backend_that_is_not_built_is_an_error(unloaded, tmp_path):
    unloaded.setattr(_backend, "_FOLDER", tmp_path)
    unloaded.setenv(_backend.VARIABLE, "cpp")
    with pytest.raises(UserError, match="TAS_FAST_BACKEND=cpp cannot be obeyed: cpp not built"):
        _backend.load()


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without CUDA device")
@pytest.mark.parametrize("backend", ["cuda", "triton"])
def test_forced_cuda_backend_without_device_is_an_error(unloaded, backend):
    unloaded.setenv(_backend.VARIABLE, backend)
    with pytest.raises(UserError, match=f"TAS_FAST_BACKEND={backend} cannot be obeyed"):
        _backend.load()


def test_unknown_backend_is_answered_with_the_known_ones(unloaded):
    unloaded.setenv(_backend.VARIABLE, "fast")
    with pytest.raises(UsageError, match=r"must be one of reference, cpp, cuda, triton .*got 'fast'"):
        _backend.load()


def test_forced_reference_loads_nothing_and_serves_everything():
    values, state, triton = run_python(USE_REFERENCE_ONLY, TAS_FAST_BACKEND="reference").stdout.splitlines()
    assert values == "[[[[0.5]], [[2.5]]]]"
    assert state == "{'reference'} {'not used: TAS_FAST_BACKEND=reference'}"
    assert triton == "False"


def test_importing_operators_does_not_import_triton_kernels():
    code = "import sys, tas_fast.ops; print([name for name in sys.modules if name.startswith('tas_fast.kernels')])"
    assert run_python(code).stdout == "[]\n"


def test_environment_report_is_json_and_names_who_serves(capsys):
    assert env.main(["--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert {name: entry["backend"] for name, entry in report["operators"]["cpu"].items()} == _backend.serving("cpu")
    assert report["versions"]["torch"].startswith(torch.__version__)
    assert report["backends"] == _backend.status()


def test_environment_table_gives_a_reason_for_every_operator(capsys):
    assert env.main([]) == 0
    lines = capsys.readouterr().out.splitlines()
    for name, entry in env.operators("cpu").items():
        assert any(line.split()[:2] == [name, f"{entry['backend']}:"] and entry["why"] in line for line in lines)


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        (["apex/__init__.py"], "not NVIDIA's apex"),
        (["apex/__init__.py", "apex/optimizers/__init__.py"], "without CUDA extensions"),
        (["apex/__init__.py", "apex/optimizers/__init__.py", "amp_C.py"], "with CUDA extensions"),
    ],
)
def test_apex_is_told_from_its_namesake(files, expected, tmp_path, monkeypatch):
    for name in files:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "amp_C", raising=False)
    assert expected in env.describe_apex()
    sys.modules.pop("amp_C", None)


def test_tests_read_nan_where_the_library_reads_uninitialised_memory():
    library = {"__name__": "tas_fast.probe", "torch": torch}
    exec("values = [torch.empty(3), torch.empty_like(torch.ones(3)), torch.ones(1).new_empty(3)]", library)
    assert all(value.isnan().all() for value in library["values"])
