"""Architectures: counted as published, validated, and the same after a round trip."""

import json
from pathlib import Path

import pytest
import torch

from tas_fast.architecture import SKELETONS, Architecture, keep_blocks
from tas_fast.cost import count_macs, count_parameters
from tas_fast.errors import UsageError, UserError
from tas_fast.models import build

PUBLISHED = json.loads((Path(__file__).parent / "published_architectures.json").read_text())
# MACs (1e6) and parameters (1e6) of unpruned networks as counted in the original code.
UNPRUNED = {
    ("resnet20", 10): (40.813194, 0.2723),
    ("resnet32", 10): (69.124746, 0.4667),
    ("resnet32", 100): (69.130596, 0.4726),
    ("resnet56", 10): (125.747850, 0.8556),
    ("resnet110", 10): (253.149834, 1.7305),
    ("resnet164", 10): (247.646730, 1.7034),
    ("resnet18", 1000): (1814.074344, 11.6895),
    ("resnet34", 1000): (3663.762408, 21.7977),
    ("resnet50", 1000): (4089.185256, 25.5570),
}


def published(name: str) -> Architecture:
    entry = PUBLISHED[name]
    return Architecture(entry["model"], entry["num_classes"], tuple(entry["widths"]), entry["depths"])


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_architectures_cost_what_was_recorded(name):
    architecture, entry = published(name), PUBLISHED[name]
    assert round(architecture.macs() / 1e6, 4) == entry["mmacs"]
    assert round(architecture.parameters() / 1e6, 4) == entry["mparameters"]


@pytest.mark.parametrize(("name", "classes"), UNPRUNED)
def test_unpruned_networks_cost_what_was_recorded(name, classes):
    architecture = Architecture(name, classes)
    assert architecture.macs() == round(UNPRUNED[name, classes][0] * 1e6)
    assert round(architecture.parameters() / 1e6, 4) == UNPRUNED[name, classes][1]


@pytest.mark.parametrize("name", PUBLISHED)
def test_built_network_is_counted_like_its_architecture(name):
    architecture = published(name)
    with torch.device("meta"):
        model = build(architecture.model, architecture.num_classes, architecture)
    assert count_macs(model, (3, *architecture.image_size)) == architecture.macs()
    assert count_parameters(model) == architecture.parameters()


@pytest.mark.parametrize("size", [8, 9, 33, (9, 16), (32, 7)])
def test_odd_image_sizes_are_counted_exactly(size):
    architecture = Architecture("resnet20", 7, in_channels=1, image_size=size)
    assert count_macs(build("resnet20", 7, architecture), (1, *architecture.image_size)) == architecture.macs()


@pytest.mark.parametrize("name", SKELETONS)
def test_every_model_computes_logits(name):
    model = build(name, 5, Architecture(name, 5, depths=(1,) * len(SKELETONS[name].blocks)))
    size = 32 if SKELETONS[name].family == "cifar" else 64
    assert model.eval()(torch.zeros(2, 3, size, size)).shape == (2, 5)


def test_json_round_trip_is_exact(tmp_path):
    architecture = published("NeurIPS-2019/C010-ResNet56")
    architecture.to_json(tmp_path / "architecture.json")
    assert Architecture.from_json(tmp_path / "architecture.json") == architecture


def test_widths_of_pruned_blocks_do_not_matter():
    full = SKELETONS["resnet20"].full_widths()
    changed = (*full[:5], 4, 4, *full[7:])
    assert Architecture("resnet20", 10, full, (2, 3, 3)) == Architecture("resnet20", 10, changed, (2, 3, 3))
    kept = keep_blocks(SKELETONS["resnet20"], full, (2, 3, 3))
    assert Architecture("resnet20", 10, kept, (2, 3, 3)) == Architecture("resnet20", 10, full, (2, 3, 3))


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"model": "resnet21"}, "unknown model 'resnet21'; did you mean"),
        ({"widths": (16,) * 18}, "one entry for each of its 19"),
        ({"widths": (33, *[4] * 18)}, "width of convolution 0 must be between 1 and 32, got 33"),
        ({"depths": (3, 3)}, "3 numbers of blocks"),
        ({"depths": (3, 3, 0)}, "between 1 and"),
        ({"num_classes": 0}, "num_classes must be at least 1, got 0"),
    ],
)
def test_impossible_architectures_are_refused(arguments, words):
    with pytest.raises(UsageError, match=words):
        Architecture(**{"model": "resnet20", "num_classes": 10} | arguments)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda d: d.update(format_version=99), "format_version 99"),
        (lambda d: d.pop("widths"), r"lacks \['widths'\]"),
        (lambda d: d.update(extra=1), r"unknown \['extra'\]"),
        (lambda d: d.update(widths=[1.5]), "list of integers"),
        (lambda d: d.update(num_classes="10"), "num_classes must be an integer"),
    ],
)
def test_damaged_files_are_refused_by_name(tmp_path, change, words):
    values = Architecture("resnet20", 10).to_dict()
    change(values)
    (tmp_path / "a.json").write_text(json.dumps(values))
    with pytest.raises(UserError, match=words) as error:
        Architecture.from_json(tmp_path / "a.json")
    assert "a.json" in str(error.value)


def test_text_that_is_no_json_is_refused(tmp_path):
    (tmp_path / "a.json").write_text('{"model": ')
    with pytest.raises(UserError, match="invalid JSON"):
        Architecture.from_json(tmp_path / "a.json")


def test_build_refuses_an_architecture_of_another_model():
    with pytest.raises(UsageError, match="architecture is of resnet20"):
        build("resnet32", 10, Architecture("resnet20", 10))
