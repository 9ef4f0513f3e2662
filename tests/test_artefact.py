"""The saved result: verified before it is written, refused when damaged, the same after loading."""

import json

import pytest
import safetensors.torch
import torch

import tas_fast
from tas_fast import artefact
from tas_fast.architecture import Architecture
from tas_fast.errors import UserError
from tas_fast.models import build

ARCHITECTURE = Architecture("resnet20", 10, (7, *[5, 9] * 3, *[11, 13] * 3, *[17, 19] * 3), image_size=8)


@pytest.fixture
def model():
    torch.manual_seed(0)
    model = build("resnet20", 10, ARCHITECTURE)
    with torch.no_grad():
        model(torch.randn(8, 3, 8, 8))  # running statistics away from their start
    return model


def test_loaded_network_gives_identical_outputs(model, tmp_path):
    artefact.save(model, ARCHITECTURE, tmp_path)
    loaded = tas_fast.load(tmp_path)
    images = torch.randn(5, 3, 8, 8)
    assert not loaded.training
    assert torch.equal(loaded(images), model.eval()(images))
    assert Architecture.from_json(tmp_path / artefact.ARCHITECTURE) == ARCHITECTURE


def test_layout_of_the_trained_network_does_not_matter(model, tmp_path):
    artefact.save(model.to(memory_format=torch.channels_last), ARCHITECTURE, tmp_path)
    assert artefact.load(tmp_path).conv1.weight.is_contiguous()


def test_difference_is_an_error_and_no_file(model, tmp_path, monkeypatch):
    original = artefact.safetensors.torch.save

    def damaged(state):
        return original({**state, "fc.bias": state["fc.bias"] + 1e-3})

    monkeypatch.setattr(artefact.safetensors.torch, "save", damaged)
    with pytest.raises(
        UserError, match=r"would differ from the trained one by 0\.001, first in fc\.bias; nothing was written"
    ):
        artefact.save(model, ARCHITECTURE, tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_nan_weights_are_no_artefact(model, tmp_path):
    model.fc.bias.data[0] = float("nan")
    with pytest.raises(UserError, match="differ"):
        artefact.save(model, ARCHITECTURE, tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_weights_of_another_architecture_are_refused_by_name(model, tmp_path):
    artefact.save(model, ARCHITECTURE, tmp_path)
    Architecture("resnet20", 10).to_json(tmp_path / artefact.ARCHITECTURE)
    with pytest.raises(UserError, match=r"does not fit the network in \d+ tensors, first bn1.bias: needs \(16,\), has"):
        artefact.load(tmp_path)


@pytest.mark.parametrize("size", [0, 4, 100, -10])
def test_truncated_weights_are_refused(model, tmp_path, size):
    artefact.save(model, ARCHITECTURE, tmp_path)
    path = tmp_path / artefact.WEIGHTS
    path.write_bytes(path.read_bytes()[:size])
    with pytest.raises(UserError, match="cannot read weights"):
        artefact.load(tmp_path)


def test_absurd_header_is_refused(tmp_path):
    ARCHITECTURE.to_json(tmp_path / artefact.ARCHITECTURE)
    header = json.dumps({"x": {"dtype": "F32", "shape": [2**40], "data_offsets": [0, 2**42]}}).encode()
    (tmp_path / artefact.WEIGHTS).write_bytes(len(header).to_bytes(8, "little") + header)
    with pytest.raises(UserError, match="cannot read weights"):
        artefact.load(tmp_path)


def test_absent_files_are_named(tmp_path):
    with pytest.raises(UserError, match=r"is not a folder; give a run's folder"):
        artefact.load(tmp_path / "absent")
    with pytest.raises(UserError, match=r"cannot read architecture .*architecture.json"):
        artefact.load(tmp_path)


def test_load_weights_into_a_network(model, tmp_path):
    artefact.save_weights(model, tmp_path / "w.safetensors")
    other = build("resnet20", 10, ARCHITECTURE)
    artefact.load_weights(other, tmp_path / "w.safetensors")
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, other.state_dict()[name])
    safetensors.torch.save_file({"a": torch.zeros(1)}, tmp_path / "w.safetensors")
    with pytest.raises(UserError, match="does not fit"):
        artefact.load_weights(other, tmp_path / "w.safetensors")
