"""gumbel_topk and gumbel_softmax: sampling candidates with differentiable weights."""

import math
from functools import partial

import op_checks
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tas_fast import ops
from tas_fast.ops.gumbel_topk import gumbel_noise

OPERATOR = torch.ops.tas_fast.gumbel_topk.default
BACKWARD = torch.ops.tas_fast.gumbel_topk_backward.default


def original_select(logits, tau, k):
    """Return index and weights as the released TAS code draws them: Gumbel noise, then torch.multinomial."""
    noise = -torch.empty_like(logits).exponential_().log()
    perturbed = (logits.log_softmax(1) + noise) / tau
    index = torch.multinomial(perturbed.softmax(1) + 1e-7, k, replacement=False)
    return index, perturbed.gather(1, index).softmax(1)


@pytest.mark.parametrize("tau", [0.1, 1.0, 5.0])
@pytest.mark.parametrize("k", [1, 2, 5, 8])
def test_draws_what_the_original_draws(k, tau):
    logits = torch.randn(19, 8)
    torch.manual_seed(1)
    index, prob = ops.gumbel_topk(logits, tau, k)
    torch.manual_seed(1)
    expected_index, expected_prob = original_select(logits, tau, k)
    assert torch.equal(index, expected_index)
    torch.testing.assert_close(prob, expected_prob)


@pytest.mark.parametrize("k", [1, 2, 8])
def test_gradients_are_those_of_the_composed_softmax(k, device):
    logits = torch.randn(6, 8, dtype=torch.float64, device=device)
    noise, clocks = gumbel_noise(logits), torch.empty_like(logits).exponential_()
    index = OPERATOR(logits, noise, clocks, 0.7, k)[1]

    def operator(logits):
        return OPERATOR(logits, noise.to(logits.dtype), clocks.to(logits.dtype), 0.7, k)[0]

    def opponent(logits):
        return ((logits.log_softmax(1) + noise.to(logits.dtype)) / 0.7).gather(1, index).softmax(1)

    op_checks.check_matches(operator, opponent, [logits])
    op_checks.check_gradients(operator, opponent, [logits])
    op_checks.check_gradcheck(operator, [logits])


@pytest.mark.parametrize("noise", [True, False])
def test_passes_opcheck(noise, device):
    logits = torch.randn(4, 8, device=device, requires_grad=True)
    clocks = torch.empty(4, 8, device=device).exponential_()
    op_checks.check_operator(OPERATOR, [logits, gumbel_noise(clocks) if noise else None, clocks, 1.5, 3])
    prob, index = OPERATOR(logits.detach(), None, clocks, 1.5, 3)
    op_checks.check_operator(BACKWARD, [torch.randn_like(prob), prob, index, 1.5, 8])


def test_compiles_for_varying_layers():
    noise, clocks = torch.randn(6, 8), torch.rand(6, 8) + 0.1

    def weights(logits):
        rows = logits.size(0)
        return OPERATOR(logits, noise[:rows], clocks[:rows], 0.5, 2)[0]

    op_checks.check_compiles(weights, [[torch.randn(rows, 8)] for rows in (3, 4, 6)])


def test_drawing_compiles(monkeypatch):
    # torch.compile knows torch.empty_like by identity, and may have looked while the poisoned one stood in its place.
    monkeypatch.undo()
    torch._dynamo.trace_rules.clear_lru_cache()
    compiled = torch.compile(partial(ops.gumbel_topk, tau=1.0, k=3), fullgraph=True, backend="aot_eager")
    index, prob = compiled(torch.randn(5, 8))
    assert index.shape == prob.shape == (5, 3)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"logits": torch.zeros(8)}, r"logits must be float32 or float64 \[L, n\], got float32 \(8,\)"),
        ({"logits": torch.zeros(5, 8).half()}, "logits must be.*float16"),
        ({"k": 9}, r"k must be in 1\.\.n with n = 8 candidates, got 9"),
        ({"k": 0}, "k must be.*got 0"),
        ({"index": torch.zeros(4, 2, dtype=torch.int64)}, r"index must be int64 \[L, k\] with L = 5"),
        ({"index": torch.zeros(5, 2)}, "index must be int64.*float32"),
    ],
)
def test_rejects(arguments, words):
    with pytest.raises(ValueError, match=f"gumbel_topk: {words}"):
        ops.gumbel_topk(**{"logits": torch.zeros(5, 8), "tau": 1.0, "k": 2, **arguments})


@settings(deadline=None, max_examples=30)
@given(rows=st.integers(1, 6), n=st.integers(1, 12), data=st.data())
def test_draws_are_distinct_and_weights_sum_to_one(rows, n, data):
    k = data.draw(st.integers(1, n))
    index, prob = ops.gumbel_topk(torch.randn(rows, n), 0.5, k)
    assert all(len(set(row)) == k for row in index.tolist())
    torch.testing.assert_close(prob.sum(1), torch.ones(rows))
    assert (prob >= 0).all()


def test_first_draw_follows_the_softmax(device):
    logits = torch.tensor([0.5, 0.3, 0.2], device=device).log().expand(20000, 3)
    index, _ = ops.gumbel_topk(logits, 1.0, 2, gumbel=False)
    share = index[:, 0].bincount(minlength=3) / 20000
    torch.testing.assert_close(share.cpu(), torch.tensor([0.5, 0.3, 0.2]), rtol=0, atol=0.02)


def test_second_draw_follows_the_softmax_of_the_rest(device):
    logits = torch.tensor([0.5, 0.3, 0.2], device=device).log().expand(20000, 3)
    index, _ = ops.gumbel_topk(logits, 1.0, 2, gumbel=False)
    after_first = index[index[:, 0] == 0, 1]
    assert math.isclose((after_first == 1).float().mean().item(), 0.6, abs_tol=0.03)


def test_same_seed_same_draw(device):
    logits = torch.randn(9, 8, device=device)
    draws = [ops.gumbel_topk(logits, 1.0, 3, generator=torch.Generator(device).manual_seed(5)) for _ in range(2)]
    assert torch.equal(draws[0][0], draws[1][0])
    assert torch.equal(draws[0][1], draws[1][1])


def test_generator_leaves_the_global_stream_alone():
    state = torch.get_rng_state()
    ops.gumbel_topk(torch.randn(3, 4, generator=torch.Generator()), 1.0, 2, generator=torch.Generator())
    assert torch.equal(torch.get_rng_state(), state)


def test_given_index_is_kept_and_weighted(device):
    logits = torch.randn(5, 8, device=device, requires_grad=True)
    index = torch.tensor([[3, 0]] * 5, device=device)
    kept, prob = ops.gumbel_topk(logits, 2.0, index=index, gumbel=False)
    assert torch.equal(kept, index)
    torch.testing.assert_close(prob, (logits / 2).gather(1, index).softmax(1))
    prob[:, 0].sum().backward()
    assert torch.count_nonzero(logits.grad.abs() > 1e-6) == 10


@pytest.mark.parametrize("tau", [0.0, -1.0])
def test_no_temperature_means_raw_logits_without_noise(tau, device):
    logits = torch.randn(5, 8, device=device)
    index, prob = ops.gumbel_topk(logits, tau, 2)
    torch.testing.assert_close(prob, logits.gather(1, index).softmax(1))
    torch.testing.assert_close(ops.gumbel_softmax(logits, tau), logits.softmax(1))


def test_gumbel_softmax_weights_every_candidate(device):
    logits = torch.randn(3, 5, device=device, requires_grad=True)
    plain = ops.gumbel_softmax(logits, 0.5, gumbel=False)
    torch.testing.assert_close(plain, (logits / 0.5).softmax(1))
    noisy = ops.gumbel_softmax(logits, 0.5)
    torch.testing.assert_close(noisy.sum(1), torch.ones(3, device=device))
    assert not torch.allclose(noisy, plain)
    noisy[:, 0].sum().backward()
    assert torch.count_nonzero(logits.grad) == 15


def test_noise_is_finite_where_the_exponential_is_zero(monkeypatch):
    monkeypatch.setattr(torch.Tensor, "exponential_", lambda x, generator=None: x.zero_())
    assert gumbel_noise(torch.zeros(3)).isfinite().all()
