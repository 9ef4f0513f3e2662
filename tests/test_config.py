"""Settings: recipes, files, flags and `--set` add up; whatever cannot be is refused by name."""

import dataclasses
import typing

import pytest
import yaml

from tas_fast.cli import config_parser, load_yaml, read_config, recipe_names
from tas_fast.config import Config, parse_target
from tas_fast.errors import UsageError


def parsed(*words):
    return read_config(config_parser("prog", "").parse_args(words))


def test_without_flags_the_quick_recipe_holds():
    assert parsed() == parsed("--recipe", "quick") == Config()


@pytest.mark.parametrize("name", recipe_names())
def test_recipes_are_readable_and_say_what_they_need(name, recipe_text):
    parsed("--recipe", name)
    for word in ("command:", "hardware:", "expected:"):
        assert f"# {word}" in recipe_text(name)


@pytest.fixture
def recipe_text():
    from tas_fast.cli import _recipe_text

    return _recipe_text


def test_later_sources_win(tmp_path):
    path = tmp_path / "c.yaml"
    path.write_text("method: {epochs: 7, tau_max: 3}\ndata: {batch_size: 8}")
    config = parsed("--recipe", "paper", "--config", str(path), "--set", "method.tau_max=2", "-b", "16")
    assert config.method.arch_lr == 1e-3  # recipe
    assert config.method.epochs == 7  # file over recipe
    assert config.method.tau_max == 2  # --set over file
    assert config.data.batch_size == 16  # flag over file


def test_saved_settings_read_back_as_they_were(tmp_path):
    config = parsed("--recipe", "released", "--no-distill", "--clip-grad", "5", "--target-macs", "40M", "--amp")
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(config.to_dict()))
    assert parsed("--config", str(path)) == config


def test_papers_and_released_recipes_differ_where_the_paper_and_its_code_do():
    paper, released = parsed("--recipe", "paper").method, parsed("--recipe", "released").method
    assert (paper.tau_max, paper.tau_schedule) == (10, "linear")
    assert (released.tau_max, released.tau_schedule) == (5, "cosine")
    assert (paper.macs_loss, released.macs_loss) == ("paper", "released")
    assert (paper.discrete_cost, released.discrete_cost) == ("exact", "original")
    assert (paper.epochs, released.epochs, paper.num_fragments) == (600, 600, 2)


def test_every_field_has_help_and_a_type_that_text_can_become():
    for section in dataclasses.fields(Config):
        hints = typing.get_type_hints(section.default_factory)
        for item in dataclasses.fields(section.default_factory):
            assert item.metadata["help"], item.name
            kinds = set(typing.get_args(hints[item.name]) or (hints[item.name],)) - {type(None)}
            assert kinds <= {int, float, bool, str}, item.name


def test_help_lists_every_flag(capsys):
    with pytest.raises(SystemExit):
        config_parser("prog", "").parse_args(["--help"])
    text = capsys.readouterr().out
    for flag in (
        "--target-macs",
        "--model",
        "--amp",
        "--no-amp",
        "--batch-size",
        "-j",
        "--recipe",
        "--teacher",
        "--resume",
    ):
        assert flag in text


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--epoch", "3"], "unknown option --epoch; did you mean --epochs"),
        (["--frobnicate"], "unknown option --frobnicate; see --help"),
        (["--epochs", "three"], "method.epochs must be a whole number, got 'three'"),
        (["--epochs", "0"], "epochs must be greater than 0, got 0"),
        (["--epochs"], "expected one argument"),
        (["-b", "2.5"], "data.batch_size must be a whole number, got '2.5'"),
        (["--search", "height"], "method.search must be one of shape, width, depth, got 'height'"),
        (["--target-macs", "1.5"], "fraction in \\(0, 1\\] or an amount such as 40M"),
        (["--target-macs=-3M"], "target MACs must be a fraction"),
        (["--recipe", "fast"], "unknown recipe 'fast'; known are paper, quick, released"),
        (["--config", "/nowhere.yaml"], "cannot read --config /nowhere.yaml"),
        (["--set", "method.taumax=3"], "unknown field method.taumax; did you mean tau_max"),
        (["--set", "methods.tau_max=3"], "unknown section 'methods'; did you mean method"),
        (["--set", "tau_max=3"], "--set takes SECTION.FIELD=VALUE"),
        (["--set", "distill.alpha=2"], "alpha must be in \\[0, 1\\], got 2"),
        (["--set", "method.lr=nan"], "lr must be greater than 0, got nan"),
        (["--ema-decay", "1"], "ema_decay must be in \\[0, 1\\), got 1"),
        (["--amp-dtype", "int8"], "run.amp_dtype must be one of auto, bfloat16, float16, got 'int8'"),
    ],
)
def test_wrong_settings_are_refused_in_one_line(words, message):
    with pytest.raises(UsageError, match=message) as error:
        parsed(*words)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("method: [1, 2]", "section method must hold fields"),
        ("- a", "must hold sections with fields, got list"),
        ("method: {epochs: true}", "method.epochs must be a whole number, got True"),
        ("method: {lr: [1]}", "method.lr must be a number"),
        ("a: {b", "is not YAML"),
    ],
)
def test_wrong_files_are_refused_in_one_line(text, message):
    with pytest.raises(UsageError, match=message) as error:
        Config().updated(load_yaml(text, "file"), "file")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("text", "value"),
    [("0.5", (0.5, None)), ("1", (1.0, None)), ("40M", (None, 40_000_000)), ("1.2g", (None, 1_200_000_000))],
)
def test_targets(text, value):
    assert parse_target(text) == value
