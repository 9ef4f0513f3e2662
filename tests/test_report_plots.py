import dataclasses
import re
import subprocess
import sys
import xml.etree.ElementTree as ElementTree

import numpy as np
import pytest
from PIL import Image
from report_samples import found, report, search_rows, training_rows

from tas_fast.report import probability_plots, result_plots
from tas_fast.report.layers import layer_stages, list_layers, list_parts
from tas_fast.report.plots import save_plots
from tas_fast.report.rows import epochs_of, thinned
from tas_fast.report.values import Seconds, Unpruned

ALWAYS = {"tradeoff", "accuracy", "widths", "macs", "time"}
WIDTH = {"entropy", "width_probabilities"}
DEPTH = {"depth_probabilities"}


@pytest.mark.parametrize(
    ("model", "search", "epochs", "expected"),
    [
        ("resnet20", "shape", 12, ALWAYS | WIDTH | DEPTH),
        ("resnet164", "shape", 5, ALWAYS | WIDTH | DEPTH),
        ("resnet50", "width", 1, ALWAYS | WIDTH),
        ("resnet34", "depth", 2, ALWAYS | DEPTH),
    ],
)
def test_every_search_has_its_plots(tmp_path, model, search, epochs, expected):
    rows = training_rows("teacher") + search_rows(model, epochs, search) + training_rows("distill")
    plots = save_plots(tmp_path, report(model=model), rows, found(model, search))
    assert {plot.name for plot in plots} == expected
    assert {path.stem for path in (tmp_path / "plots").iterdir()} == expected
    for plot in plots:
        ElementTree.fromstring(plot.svg)
        with Image.open(tmp_path / "plots" / f"{plot.name}.png") as image:
            pixels = np.asarray(image.convert("L"))
        assert pixels.std() > 5
        assert (pixels[[0, -1]] == 255).all(), "something touches the edge"


@pytest.mark.parametrize(
    ("rows", "expected"),
    [
        ([], {"time"}),
        (training_rows("teacher", 1), {"time", "accuracy"}),
        (search_rows("resnet20", 1, "width"), {"time", "accuracy", "macs"} | WIDTH),
    ],
)
def test_an_unfinished_run_shows_what_there_is(tmp_path, rows, expected):
    partial = report(pruned=None, unpruned=Unpruned(None, 40_813_194, 269_722), seconds=Seconds(None, None, None, 0.0))
    assert {plot.name for plot in save_plots(tmp_path, partial, rows)} == expected


def test_ids_and_references_of_one_page_do_not_collide(tmp_path):
    rows = search_rows("resnet20", 2, "depth")
    page = "".join(plot.svg for plot in save_plots(tmp_path, report(), rows))
    ids = re.findall(r'\bid="([^"]+)"', page)
    assert len(ids) == len(set(ids))
    assert set(re.findall(r'(?:url\(|href=")#([^")]+)', page)) <= set(ids)


def test_an_unknown_model_is_drawn_without_stages():
    figure = probability_plots.plot_width_probabilities(search_rows("resnet20", 2), "someone's $network_")
    assert len(figure.axes) == 3


@pytest.mark.parametrize("repeats", [1, 3])
def test_layers_with_fewer_widths_than_others_can_be_drawn(repeats):
    row = search_rows("resnet20", 1)[0]
    probs, choices = [[0.2, 0.8], [0.1, 0.2, 0.7]], [[8, 16], [5, 10, 16]]
    rows = [{**row, "epoch": i, "width_probs": probs, "width_choices": choices} for i in range(repeats)]
    assert len(probability_plots.plot_width_probabilities(rows, "other").axes) == repeats + 1
    assert probability_plots.plot_width_entropy(rows, "other") is not None


@pytest.mark.parametrize(
    ("epochs", "done"), [([0, 1, 2], [1, 2, 3]), ([0, 0, 1, 1], [0.5, 1, 1.5, 2]), ([4], [5]), ([], [])]
)
def test_rows_are_placed_by_the_epochs_done(epochs, done):
    assert epochs_of([{"epoch": epoch} for epoch in epochs]).tolist() == done


def test_thinning_keeps_the_ends():
    rows = [{"step": i} for i in range(1000)]
    kept = thinned(rows, 7)
    assert len(kept) == 7
    assert (kept[0], kept[-1]) == (rows[0], rows[-1])
    assert thinned(rows[:5], 7) == rows[:5]


def test_width_ticks_name_the_shares_that_were_truncated():
    choices = search_rows("resnet20", 1)[0]["width_choices"]
    assert probability_plots._width_ticks(choices, 8) == ([1, 3, 5, 7], ["40", "60", "80", "100"])


def test_entropy_is_one_for_equal_odds_and_zero_for_certainty():
    assert probability_plots._entropy([0.25] * 4) == pytest.approx(1)
    assert probability_plots._entropy([1.0, 0.0, 0.0]) == 0
    assert probability_plots._entropy([1.0]) == 0


@pytest.mark.parametrize("accuracies", [(98.9, 98.89, 98.88), (98.0, 98.0, 98.0), (90.0, 95.0, 94.99)])
def test_labels_of_equal_accuracies_stay_apart(accuracies):
    unpruned, with_teacher, alone = accuracies
    sample = report()
    sample = report(
        unpruned=dataclasses.replace(sample.unpruned, accuracy=unpruned),
        pruned=dataclasses.replace(sample.pruned, accuracy=with_teacher, accuracy_without_distillation=alone),
    )
    figure = result_plots.plot_tradeoff(sample)
    figure.draw_without_rendering()
    boxes = [text.get_window_extent() for text in figure.axes[0].texts if "%" in text.get_text()]
    assert len(boxes) == 3
    assert not any(a.overlaps(b) for i, a in enumerate(boxes) for b in boxes[:i])


def test_removed_blocks_have_no_width():
    layers = list_layers(found("resnet20", "shape"))
    assert len(layers) == 19
    assert [layer.width for layer in layers[5:7]] == [0, 0]
    assert all(1 <= layer.width <= layer.full for layer in layers[:5])


@pytest.mark.parametrize("model", ["resnet20", "resnet164", "resnet18", "resnet50"])
@pytest.mark.parametrize("search", ["shape", "width", "depth"])
def test_parts_add_up_to_the_network(model, search):
    architecture = found(model, search)
    parts = list_parts(architecture)
    assert sum(part.kept_macs for part in parts) == architecture.macs()
    assert sum(part.kept for part in parts[1:-1]) == sum(architecture.depths)
    assert sum(len(block) for part in parts[:-1] for block in part.widths) == len(architecture.widths)


@pytest.mark.parametrize(("model", "counts"), [("resnet20", [1, 6, 6, 6]), ("resnet50", [1, 9, 12, 18, 9])])
def test_convolutions_know_their_stage(model, counts):
    stages = layer_stages(model, sum(counts))
    assert [stages.count(stage) for stage in range(len(counts))] == counts
    assert layer_stages(model, 5) == (1,) * 5


def test_the_report_needs_neither_torch_nor_matplotlib_before_it_draws():
    code = "import sys, tas_fast.report; sys.exit(any(name in sys.modules for name in ('torch', 'matplotlib')))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_drawing_leaves_matplotlib_as_it_was(tmp_path):
    import matplotlib

    before = dict(matplotlib.rcParams)
    save_plots(tmp_path, report(), [])
    assert dict(matplotlib.rcParams) == before
    assert "matplotlib.pyplot" not in sys.modules or not sys.modules["matplotlib.pyplot"].get_fignums()
