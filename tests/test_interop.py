"""Files of the original code: configurations become architectures, anything else is refused by name."""

import json

import pytest
from golden import load_golden_json

from tas_fast.errors import UserError
from tas_fast.interop.autodl import read_config

CONFIG = {
    "dataset": ["str", "cifar"],
    "arch": ["str", "resnet"],
    "depth": ["int", "20"],
    "class_num": ["int", "10"],
    "super_type": ["str", "infer-shape"],
    "xchannels": ["int", ["3", "16", *["4"] * 6, *["9"] * 6, *["19"] * 6]],
    "xblocks": ["int", ["1", "2", "3"]],
    "zero_init_residual": ["bool", "0"],
    "estimated_FLOP": ["float", "1.5"],
    "teacher": ["none", "None"],
}


def test_a_configuration_file_is_read(tmp_path):
    (tmp_path / "a.config").write_text(json.dumps(CONFIG))
    found = read_config(tmp_path / "a.config")
    assert (found.model, found.num_classes, found.depths) == ("resnet20", 10, (1, 2, 3))
    assert found.widths == (16, 4, 4, *[9] * 4, *[19] * 6)


def test_without_choices_it_is_the_unpruned_network():
    plain = {name: value for name, value in CONFIG.items() if name not in ("xchannels", "xblocks")}
    assert read_config(plain).parameters() == 272_282


def test_width_searches_keep_all_blocks():
    found = read_config({name: value for name, value in CONFIG.items() if name != "xblocks"})
    assert found.depths == (3, 3, 3)


def test_published_architectures_count_exactly():
    for entry in load_golden_json("published_architectures").values():
        found = read_config({key: value for key, value in entry.items() if value is not None})
        assert found.macs() == round(entry["measured_mmacs"] * 1e6)
        assert found.parameters() == round(entry["params_m"] * 1e6)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"depth": ["int", "21"]}, "describes resnet21; tas_fast has resnet20"),
        ({"depth": ["int", "many"]}, "depth = 'many' is not of type int"),
        ({"class_num": None}, "lacks class_num"),
        ({"xblocks": ["int", ["9", "9", "9"]]}, "depths must be 3 numbers of blocks"),
        ({"xchannels": ["int", ["3", "16"]]}, "one entry for each of its"),
        ({"dataset": ["str", "imagenet"], "layers": ["int", ["9"]]}, "describes ImageNet ResNet with layers"),
    ],
)
def test_other_configurations_are_refused_by_name(change, words):
    values = {name: value for name, value in {**CONFIG, **change}.items() if value is not None}
    with pytest.raises(UserError, match=words):
        read_config(values)


def test_absent_and_damaged_files_are_refused(tmp_path):
    with pytest.raises(UserError, match="cannot read configuration"):
        read_config(tmp_path / "absent.config")
    (tmp_path / "b.config").write_text("[1, 2]")
    with pytest.raises(UserError, match="expected a JSON object, got list"):
        read_config(tmp_path / "b.config")
