"""Algorithm 1: what each of the two steps changes and what it leaves alone; from probabilities to an architecture."""

import copy

import pytest
import torch

from tas_fast.config import TasConfig
from tas_fast.engine import Precision
from tas_fast.methods.tas import TAS, Supernet
from tas_fast.methods.tas.derive import within_target
from tas_fast.optim import sgd

CPU = torch.device("cpu")


def searched(seed=0, **settings):
    torch.manual_seed(seed)
    supernet = Supernet("resnet20", 4, in_channels=1, image_size=8)
    config = TasConfig(**settings)
    method = TAS(supernet, config, 0.5 * supernet.space.unpruned.macs(), seed=1)
    optimizer = sgd(supernet.weight_parameters(), lr=0.1, momentum=0.9, nesterov=True, weight_decay=5e-4)
    method.prepare(supernet, optimizer)
    method.before_epoch(0, 10)
    return supernet, method, optimizer


def batch():
    generator = torch.Generator().manual_seed(2)
    half = (torch.randn(8, 1, 8, 8, generator=generator), torch.arange(8) % 4)
    return (*half, half[0].flip(0), half[1].flip(0))


def weight_step(supernet, method, optimizer):
    optimizer.zero_grad()
    loss, _, _ = method.loss(supernet, batch())
    loss.backward()
    optimizer.step()


def snapshot(parameters):
    return [parameter.detach().clone() for parameter in parameters]


def same(parameters, before):
    return all(torch.equal(parameter, old) for parameter, old in zip(parameters, before, strict=True))


def test_weight_step_leaves_the_logits_and_their_gradients_alone():
    supernet, method, optimizer = searched()
    logits, weights = snapshot(method.logits), snapshot(supernet.weight_parameters())
    weight_step(supernet, method, optimizer)
    assert same(method.logits, logits)
    assert all(logit.grad is None for logit in method.logits)
    assert not same(supernet.weight_parameters(), weights)


def test_architecture_step_moves_every_logit_and_leaves_weights_and_their_gradients_alone():
    supernet, method, optimizer = searched()
    weight_step(supernet, method, optimizer)
    weights = snapshot(supernet.weight_parameters())
    grads = snapshot(p.grad for p in supernet.weight_parameters())
    logits = snapshot(method.logits)
    values = method.after_step(supernet, batch(), Precision(CPU))
    assert same(supernet.weight_parameters(), weights)
    assert same([p.grad for p in supernet.weight_parameters()], grads)
    assert all((logit != old).all() for logit, old in zip(method.logits, logits, strict=True))
    assert 0 <= values["accuracy"] <= 100


def test_architecture_step_updates_running_statistics():
    supernet, method, _ = searched()
    before = supernet.stem.running_mean.clone()
    method.after_step(supernet, batch(), Precision(CPU))
    assert not torch.equal(supernet.stem.running_mean, before)


def test_logits_rest_during_their_warm_up():
    supernet, method, _ = searched(arch_warmup_epochs=2)
    logits = snapshot(method.logits)
    method.after_step(supernet, batch(), Precision(CPU))
    assert same(method.logits, logits)


@pytest.mark.parametrize("rule", ["skip", "update"])
def test_norms_not_sampled_in_a_step_move_only_by_the_rule_of_2019(rule):
    supernet, method, optimizer = searched(unsampled_norms=rule)
    torch.nn.init.uniform_(supernet.stem.weight, 0.5, 1.5)
    for _ in range(3):
        before, momentum = supernet.stem.weight.detach().clone(), None
        if optimizer.state[supernet.stem.weight]:
            momentum = optimizer.state[supernet.stem.weight]["momentum_buffer"].clone()
        weight_step(supernet, method, optimizer)
        rows = [row for row in range(8) if row not in method.last_choice.width_index[0].tolist()]
        moved = (supernet.stem.weight[rows] != before[rows]).any()
        assert moved == (rule == "update")
        if rule == "skip" and momentum is not None:
            assert torch.equal(optimizer.state[supernet.stem.weight]["momentum_buffer"][rows], momentum[rows])


def test_skipping_equals_separate_modules_that_torch_skips():
    """A row per module, as in the original: SGD passes over parameters whose gradient is None."""
    supernet, method, optimizer = searched(unsampled_norms="skip")
    rows = [torch.nn.Parameter(row.clone()) for row in supernet.stem.weight.detach()]
    separate = torch.optim.SGD(rows, lr=0.1, momentum=0.9, nesterov=True, weight_decay=5e-4)
    for _ in range(6):
        weight_step(supernet, method, optimizer)
        sampled = method.last_choice.width_index[0].tolist()
        for number, row in enumerate(rows):
            row.grad = supernet.stem.weight.grad[number].clone() if number in sampled else None
        separate.step()
    assert torch.allclose(supernet.stem.weight, torch.stack(rows), atol=1e-6)


def test_state_restores_optimizer_and_random_numbers():
    supernet, method, _ = searched()
    method.after_step(supernet, batch(), Precision(CPU))
    twin_net = copy.deepcopy(supernet)
    twin = TAS(twin_net, method.config, 0.5 * supernet.space.unpruned.macs(), seed=99)
    twin.load_state_dict(copy.deepcopy(method.state_dict()))
    twin.before_epoch(0, 10)
    method.after_step(supernet, batch(), Precision(CPU))
    twin.after_step(twin_net, batch(), Precision(CPU))
    assert same(method.logits, twin.logits)


@pytest.mark.parametrize("search", ["shape", "width", "depth"])
@pytest.mark.parametrize("model", ["resnet20", "resnet56", "resnet18", "resnet50"])
@pytest.mark.parametrize("ratio", [0.3, 0.5, 0.8])
def test_derived_architectures_cost_what_was_asked_for(model, search, ratio):
    torch.manual_seed(3)
    supernet = Supernet(model, 10, search)
    for logits in supernet.architecture_parameters():
        torch.nn.init.normal_(logits)
    target = ratio * supernet.space.unpruned.macs()
    found = within_target(supernet, 0.95 * target, 1.05 * target)
    assert supernet.space.smallest().macs() <= found.macs() <= supernet.space.unpruned.macs()
    if search != "depth":  # few depths leave gaps that no choice can hit
        assert abs(found.macs() - target) <= 0.05 * target


def test_an_argmax_architecture_within_the_band_stays_as_it_is():
    torch.manual_seed(4)
    supernet = Supernet("resnet20", 10)
    assert within_target(supernet, 0, 1e12) == supernet.architecture()


@pytest.mark.parametrize("seed", range(4))
def test_no_two_changes_make_the_derived_architecture_more_probable(seed):
    torch.manual_seed(seed)
    supernet = Supernet("resnet20", 10, "width")
    torch.nn.init.normal_(supernet.width_logits)
    target = 0.5 * supernet.space.unpruned.macs()
    found = within_target(supernet, 0.95 * target, 1.05 * target)
    log_probs = supernet.width_logits.detach().log_softmax(1)
    index = torch.tensor([row.index(width) for row, width in zip(supernet.space.widths, found.widths, strict=True)])
    pairs = torch.combinations(torch.arange(19), 2)
    trials = index.repeat(len(pairs), 64, 1)
    a, b = torch.meshgrid(torch.arange(8), torch.arange(8), indexing="ij")
    trials.scatter_(2, pairs[:, None, :1].expand(-1, 64, 1), a.reshape(1, 64, 1).expand(len(pairs), 64, 1))
    trials.scatter_(2, pairs[:, None, 1:].expand(-1, 64, 1), b.reshape(1, 64, 1).expand(len(pairs), 64, 1))
    trials = trials.view(-1, 19)
    costs = supernet.cost.discrete(trials, None) + 10
    within = (costs >= 0.95 * target) & (costs <= 1.05 * target)
    probable = log_probs.gather(1, trials.T).sum(0)
    assert probable[within].max() <= log_probs.gather(1, index[:, None]).sum() + 1e-4


def test_derivation_moves_the_least_probable_choices():
    supernet = Supernet("resnet20", 10, "width")
    with torch.no_grad():
        supernet.width_logits.zero_()
        supernet.width_logits[:, 7] = 10.0
        supernet.width_logits[5, :] = torch.linspace(0, 0.1, 8)  # the one undecided convolution
    full = supernet.space.unpruned
    found = within_target(supernet, 0.95 * full.macs(), 0.99 * full.macs())
    changed = [i for i, (ours, theirs) in enumerate(zip(found.widths, full.widths, strict=True)) if ours != theirs]
    assert changed == [5]
