"""The examples in the docstrings of operators and modules run and show what they say."""

import doctest
import importlib
from pathlib import Path

import pytest

import tas_fast.nn
import tas_fast.ops

MODULES = sorted(
    f"{package.__name__}.{file.stem}"
    for package in (tas_fast.ops, tas_fast.nn)
    for file in Path(package.__file__).parent.glob("*.py")
    if not file.stem.startswith("_") and ">>>" in file.read_text()
)


@pytest.mark.parametrize("name", MODULES)
def test_examples_run(name):
    result = doctest.testmod(importlib.import_module(name))
    assert result.attempted > 0
    assert result.failed == 0
