"""The supernets: recorded numbers of the original code, shapes of every network and search, sampling."""

import pytest
import torch
import torch.nn.functional as F
from golden import load_golden

from tas_fast.errors import UsageError, UserError
from tas_fast.interop.autodl import _our_name, load_search_state
from tas_fast.methods.tas import Choice, Supernet

SEARCHES = ("width", "depth", "shape")


def recorded(search):
    """The recorded supernet, its inputs and the choice the original made."""
    numbers = load_golden(f"supernet_{search}_resnet20")
    supernet = Supernet("resnet20", 10, search)
    load_search_state(
        supernet, {name.removeprefix("state."): v for name, v in numbers.items() if name.startswith("state.")}
    )
    choice = supernet.sample(1.0, width_index=numbers.get("width_index"), gumbel=False)
    return supernet, numbers, choice


def difference(actual, expected):
    return ((actual - expected).norm() / expected.norm()).item()


@pytest.mark.parametrize("search", SEARCHES)
def test_recorded_logits_and_costs(search):
    supernet, numbers, choice = recorded(search)
    logits = supernet(numbers["x"], choice)
    assert difference(logits, numbers["logits"]) < 1e-4
    assert F.cross_entropy(logits, numbers["target"]).item() == pytest.approx(numbers["cross_entropy"].item(), rel=1e-5)
    assert supernet.expected_macs().item() / 1e6 == pytest.approx(numbers["expected_mflops"].item(), rel=1e-5)
    assert (supernet.expected_macs() / 1e6).log().item() == pytest.approx(numbers["flops_loss"].item(), rel=1e-5)
    assert supernet.argmax_macs(original=True).item() == round(numbers["genotype_mflops"].item() * 1e6)


@pytest.mark.parametrize("search", SEARCHES)
def test_recorded_gradients(search):
    supernet, numbers, choice = recorded(search)
    loss = (
        F.cross_entropy(supernet(numbers["x"], choice), numbers["target"]) + 2 * (supernet.expected_macs() / 1e6).log()
    )
    loss.backward()
    gradients = {name.removeprefix("grad."): v for name, v in numbers.items() if name.startswith("grad.")}
    ours = dict(supernet.named_parameters())
    for name, place, row in _places(supernet, gradients):
        grad = ours[place].grad
        grad = grad if row is None else grad[row, : gradients[name].numel()]
        assert difference(grad, gradients[name]) < 1e-3, name
    norms = {name.removeprefix("gradnorm."): v for name, v in numbers.items() if name.startswith("gradnorm.")}
    for name, place, row in _places(supernet, norms):
        grad = ours[place].grad
        if row is None:
            assert grad.norm().item() == pytest.approx(norms[name].item(), rel=1e-3), name


def _places(supernet, names):
    return [(name, *_our_name(name, supernet.skeleton.bottleneck, supernet.block_names())) for name in names]


@pytest.mark.parametrize("search", SEARCHES)
@pytest.mark.parametrize("model", ["resnet20", "resnet32", "resnet44", "resnet56", "resnet110", "resnet164"])
def test_cifar_supernets_train(model, search):
    supernet = Supernet(model, 5, search, in_channels=1, image_size=8)
    loss = F.cross_entropy(supernet(torch.randn(4, 1, 8, 8), supernet.sample(1.0)), torch.arange(4))
    gradients = torch.autograd.grad(loss, supernet.architecture_parameters())
    assert all(gradient.isfinite().all() and gradient.abs().sum() > 0 for gradient in gradients)


@pytest.mark.parametrize("search", SEARCHES)
@pytest.mark.parametrize("model", ["resnet18", "resnet34", "resnet50"])
def test_imagenet_supernets_train(model, search):
    supernet = Supernet(model, 5, search, image_size=32)
    loss = F.cross_entropy(supernet(torch.randn(4, 3, 32, 32), supernet.sample(1.0)), torch.arange(4))
    gradients = torch.autograd.grad(loss, supernet.architecture_parameters())
    assert all(gradient.isfinite().all() and gradient.abs().sum() > 0 for gradient in gradients)


@pytest.mark.parametrize("k", range(1, 9))
def test_any_number_of_fragments(k):
    supernet = Supernet("resnet20", 10, image_size=8)
    choice = supernet.sample(1.0, k)
    assert choice.width_index.shape == (19, k)
    assert all(len(set(row)) == k for row in choice.width_index.tolist())
    assert torch.allclose(choice.width_prob.sum(1), torch.ones(19))
    assert supernet(torch.randn(2, 3, 8, 8), choice).shape == (2, 10)


@pytest.mark.parametrize("k", [0, 9])
def test_impossible_numbers_of_fragments_are_refused(k):
    with pytest.raises(UsageError, match=f"K = {k} widths"):
        Supernet("resnet20", 10).sample(1.0, k)


def test_sampling_is_reproducible_from_a_generator():
    supernet = Supernet("resnet20", 10)
    first, second = (supernet.sample(2.0, generator=torch.Generator().manual_seed(3)) for _ in range(2))
    assert torch.equal(first.width_index, second.width_index)
    assert torch.equal(first.width_prob, second.width_prob)
    assert torch.equal(first.depth_prob, second.depth_prob)


def test_without_temperature_weights_are_the_plain_softmax():
    supernet = Supernet("resnet20", 10)
    choice = supernet.sample(0.0)
    expected = supernet.width_logits.gather(1, choice.width_index).softmax(1)
    assert torch.allclose(choice.width_prob, expected)
    assert torch.allclose(choice.depth_prob, supernet.depth_probs())


def test_one_full_width_and_certain_depths_compute_the_unpruned_network():
    """K = 1 at full width with all blocks is a plain network; its derived twin with the same weights gives the same
    outputs.
    """
    torch.manual_seed(0)
    supernet = Supernet("resnet18", 10, "width", image_size=32).eval()
    twin = _twin(supernet)
    images = torch.randn(3, 3, 32, 32)
    index = torch.full((17, 1), 7)
    with torch.no_grad():
        outputs = supernet(images, Choice(index, torch.ones(17, 1), None))
        assert torch.allclose(outputs, twin(images), rtol=1e-4, atol=1e-5)


def _twin(supernet):
    from tas_fast.models import build

    model = build("resnet18", 10, supernet.space.unpruned).eval()
    units = [(supernet.stem, model.conv1, model.bn1)]
    blocks = [block for stage in model.stages for block in getattr(model, stage)]
    for ours, theirs in zip(supernet.blocks, blocks, strict=True):
        units += [
            (conv, getattr(theirs, f"conv{i}"), getattr(theirs, f"bn{i}")) for i, conv in enumerate(ours.convs, 1)
        ]
        if ours.shortcut is not None:
            units.append((ours.shortcut, theirs.downsample[1], theirs.downsample[2]))
    for unit, conv, norm in units:
        for parameter in (unit.weight, unit.bias):
            torch.nn.init.normal_(parameter)
        conv.weight.data = unit.conv_weight.data
        for name in ("weight", "bias", "running_mean", "running_var"):
            getattr(norm, name).data = getattr(unit, name).data[-1]
    model.fc.load_state_dict(supernet.classifier.state_dict())
    return model


def test_paper_era_supernet_leaves_out_the_relu_after_the_addition():
    torch.manual_seed(0)
    images = torch.randn(2, 3, 8, 8)
    modern = Supernet("resnet20", 10, image_size=8)
    paper = Supernet("resnet20", 10, image_size=8, relu_after_addition=False)
    paper.load_state_dict(modern.state_dict())
    choice = modern.sample(1.0)
    outputs = []
    for supernet in (modern, paper):
        block = supernet.blocks[0]
        x = supernet.stem(images, choice.width_index[0], choice.width_prob[0])
        channels = [supernet.space.widths[1 + i][choice.width_index[1 + i].max()] for i in range(2)]
        outputs.append(block(x, choice.width_index[1:3], choice.width_prob[1:3], channels))
    assert outputs[1].min() < 0
    assert torch.equal(outputs[0], outputs[1].relu())


def test_parameters_split_into_weights_and_architecture():
    supernet = Supernet("resnet20", 10)
    parts = [*supernet.weight_parameters(), *supernet.architecture_parameters()]
    assert {id(p) for p in parts} == {id(p) for p in supernet.parameters()}
    assert len(parts) == len(list(supernet.parameters()))


def test_argmax_architecture_costs_what_the_table_says():
    torch.manual_seed(5)
    supernet = Supernet("resnet56", 10)
    assert supernet.architecture().macs() == supernet.argmax_macs().item() + 10


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda state: state.pop("classifier.weight"), "lacks 1 tensors of this supernet, first classifier.weight"),
        (lambda state: state.update({"layers.30.conv_a.conv.weight": torch.zeros(1)}), "only 9 blocks"),
        (lambda state: state.update({"cells.0.weight": torch.zeros(1)}), "no tensor of the original's"),
        (
            lambda state: state.update({"classifier.bias": torch.zeros(11)}),
            r"shape \(11,\); this supernet needs \(10,\)",
        ),
    ],
)
def test_search_states_of_other_networks_are_refused(change, words):
    numbers = load_golden("supernet_shape_resnet20")
    state = {name.removeprefix("state."): v.clone() for name, v in numbers.items() if name.startswith("state.")}
    change(state)
    with pytest.raises(UserError, match=words):
        load_search_state(Supernet("resnet20", 10), state)
