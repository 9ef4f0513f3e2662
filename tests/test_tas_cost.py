"""TAS's cost model: recorded numbers of the original code, and exact agreement with the architecture that is
derived.
"""

import json
from pathlib import Path

import pytest
import torch

from tas_fast.errors import UsageError
from tas_fast.methods.tas import CostTable, SearchSpace, macs_loss, temperature, width_candidates
from tas_fast.methods.tas.objective import Target
from tas_fast.methods.tas.search_space import depth_candidates

PUBLISHED = json.loads((Path(__file__).parent / "published_architectures.json").read_text())
# model, classes -> expected MACs at uniform probabilities; discrete of narrow/wide x shallow/deep (1e6), from the
# original estimators
RECORDED = {
    ("resnet20", 10): (10.832545, 1.001854, 3.169918, 12.501632, 40.813184),
    ("resnet32", 10): (16.548912, 1.001854, 5.337982, 12.501632, 69.124736),
    ("resnet56", 10): (27.981651, 1.001854, 9.674110, 12.501632, 125.747840),
    ("resnet110", 10): (55.991856, 1.001854, 19.430398, 12.501632, 253.149824),
    ("resnet164", 10): (56.897202, 1.734968, 19.714168, 20.367872, 247.646720),
    ("resnet32", 100): (16.552626, 1.003564, 5.339692, 12.507392, 69.130496),
    ("resnet18", 1000): (592.851990, 103.285897, 185.065819, 889.229312, 1814.073344),
    ("resnet34", 1000): (1013.410339, 123.663625, 348.356653, 1120.440320, 3663.761408),
    ("resnet50", 1000): (1225.063599, 174.736137, 387.542451, 1687.158784, 4089.184256),
}


@pytest.mark.parametrize(("model", "classes"), RECORDED)
def test_estimators_give_the_recorded_costs(model, classes):
    space = SearchSpace(model, classes)
    table, (length, stages, depths) = CostTable(space), (len(space.widths), len(space.depths), len(space.depths[0]))
    expected, *discrete = RECORDED[model, classes]
    uniform = table.expected(torch.full((length, 8), 1 / 8), torch.full((stages, depths), 1 / depths))
    assert uniform.item() / 1e6 == pytest.approx(expected, rel=1e-6)
    for width, depth, value in zip((0, 0, 7, 7), (0, depths - 1) * 2, discrete, strict=True):
        index = torch.full((length,), width), torch.full((stages,), depth)
        assert table.discrete(*index, original=True).item() == round(value * 1e6)


def _representable(name):
    """Whether the released estimate can be reproduced: all widths and depths are candidates and the file was not
    edited by hand.
    """
    return name not in {
        "NeurIPS-2019/C100-ResNet32",
        "NeurIPS-2019/ImageNet-ResNet50V1",
        "compares/CIFAR100-FIX-R32",
        "temps/T-ResNet18",
    }


@pytest.mark.parametrize("name", [name for name in PUBLISHED if _representable(name)])
def test_original_estimate_of_published_architectures(name):
    entry = PUBLISHED[name]
    space = SearchSpace(entry["model"], entry["num_classes"])
    widths = torch.tensor([row.index(width) for row, width in zip(space.widths, entry["widths"], strict=True)])
    depths = entry["depths"] or space.skeleton.blocks
    depths = torch.tensor([row.index(depth) for row, depth in zip(space.depths, depths, strict=True)])
    assert CostTable(space).discrete(widths, depths, original=True).item() == round(entry["estimated_mmacs"] * 1e6)


@pytest.mark.parametrize("search", ["shape", "width", "depth"])
@pytest.mark.parametrize("model", ["resnet20", "resnet56", "resnet164", "resnet34", "resnet50"])
def test_exact_cost_equals_the_derived_architectures(model, search):
    space, generator = SearchSpace(model, 10, search), torch.Generator().manual_seed(1)
    table = CostTable(space)
    for _ in range(5):
        widths = [int(torch.randint(len(row), (), generator=generator)) for row in space.widths]
        depths = [int(torch.randint(len(row), (), generator=generator)) for row in space.depths]
        derived = space.derive(
            tuple(row[i] for row, i in zip(space.widths, widths, strict=True)),
            tuple(row[i] for row, i in zip(space.depths, depths, strict=True)),
        )
        assert table.discrete(torch.tensor(widths), torch.tensor(depths)).item() + 10 == derived.macs()


def test_discrete_cost_of_several_architectures_at_once():
    space = SearchSpace("resnet20", 10)
    table, generator = CostTable(space), torch.Generator().manual_seed(0)
    widths = torch.randint(8, (5, 19), generator=generator)
    depths = torch.randint(3, (5, 3), generator=generator)
    alone = torch.stack([table.discrete(w, d) for w, d in zip(widths, depths, strict=True)])
    assert torch.equal(table.discrete(widths, depths), alone)


def test_expected_cost_of_certain_probabilities_is_the_discrete_cost_of_a_full_depth_network():
    space = SearchSpace("resnet20", 10, "width")
    table = CostTable(space)
    probs = torch.nn.functional.one_hot(torch.full((19,), 7), 8).float()
    assert table.expected(probs, None).item() == pytest.approx(space.unpruned.macs() - 10, rel=1e-6)


@pytest.mark.parametrize("width", [16, 32, 64, 128, 256, 512, 1024, 2048])
def test_width_candidates_are_eight_and_ascend_to_the_full_width(width):
    candidates = width_candidates(width)
    assert len(candidates) == 8
    assert candidates == tuple(sorted(candidates))
    assert candidates[-1] == width


def test_width_candidates_truncate_the_float_product():
    assert width_candidates(90)[4] == 62  # 90 * 0.7 = 62.99999999999999


@pytest.mark.parametrize(
    ("model", "depths"),
    [
        ("resnet20", ((1, 2, 3),) * 3),
        ("resnet32", ((1, 3, 5),) * 3),
        ("resnet110", ((1, 3, 5, 7, 9, 11, 13, 15, 17, 18),) * 3),
        ("resnet18", ((1, 2),) * 4),
        ("resnet34", ((1, 2, 3), (1, 2, 4), (2, 4, 6), (1, 2, 3))),
        ("resnet101", ((1, 2, 3), (1, 2, 4), (7, 15, 23), (1, 2, 3))),
        ("resnet152", ((1, 2, 3), (2, 5, 8), (12, 24, 36), (1, 2, 3))),
    ],
)
def test_depth_candidates(model, depths):
    assert depth_candidates(SearchSpace(model, 10).skeleton) == depths


@pytest.mark.parametrize(
    ("form", "discrete", "sign"),
    [
        ("paper", 106.0, 1),
        ("paper", 105.0, 0),
        ("paper", 95.0, 0),
        ("paper", 94.0, -1),
        ("released", 100.1, 1),
        ("released", 100.0, 0),
        ("released", 90.0, 0),
        ("released", 89.9, -1),
    ],
)
def test_cost_term_pushes_towards_the_target(form, discrete, sign):
    expected = torch.tensor(80e6, requires_grad=True)
    target = Target.of(100e6, 200e6, form=form, tolerance=0.05)
    loss = macs_loss(expected, torch.tensor(discrete * 1e6), target)
    assert loss.item() == pytest.approx(sign * torch.tensor(80.0).log().item())
    loss.backward()
    assert torch.sign(expected.grad) == sign


def test_temperature_schedules():
    linear = [temperature(e, 5, start=10, end=0.1, schedule="linear") for e in range(5)]
    assert linear[0] == 10
    assert linear[-1] == pytest.approx(0.1)
    assert linear[1] - linear[0] == pytest.approx(linear[4] - linear[3])
    cosine = [temperature(e, 4, start=5, end=0.1, schedule="cosine") for e in range(4)]
    assert cosine[0] == 5
    assert cosine[2] == pytest.approx(2.55)
    assert cosine[-1] > 0.1
    with pytest.raises(UsageError, match="linear or cosine"):
        temperature(0, 1, start=1, end=1, schedule="step")
