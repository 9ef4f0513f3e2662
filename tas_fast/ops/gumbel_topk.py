"""Sampling of K of n candidates without replacement, with weights that are differentiable in the logits.

    l       = (log_softmax(logits) + g) / tau        g = -log(e), e ~ Exp(1): standard Gumbel noise
    index   = K draws without replacement from softmax(l) + 1e-7
    prob    = softmax over the drawn entries of l

    logits [L, n], rows independent    index [L, K]    prob [L, K]

Two layers of randomness: the noise, and a draw from the perturbed distribution (not its top K). Drawing without
replacement is a race of exponential clocks, top K of (softmax(l) + 1e-7) / e with e ~ Exp(1): on the device, without a
host synchronisation, and on the CPU the very draws of torch.multinomial. The normaliser of log_softmax cancels in prob,
so the gradient reaches the drawn logits alone: grad_logits[index] = prob * (grad_prob - <grad_prob, prob>) / tau.
Saved: prob, index. Source: TAS (Dong and Yang, NeurIPS 2019), equations 3 and 4, and its released code.
"""

from functools import partial
from typing import Any

import torch
from torch import Tensor

from tas_fast.ops._library import define, described, differentiate, fake, implement, wrong

define("gumbel_topk(Tensor logits, Tensor? noise, Tensor clocks, float tau, SymInt k) -> (Tensor prob, Tensor index)")
define("gumbel_topk_backward(Tensor grad_prob, Tensor prob, Tensor index, float tau, SymInt n) -> Tensor")


def gumbel_topk(
    logits: Tensor,
    tau: float,
    k: int = 2,
    *,
    gumbel: bool = True,
    index: Tensor | None = None,
    generator: torch.Generator | None = None,
) -> tuple[Tensor, Tensor]:
    """Return `k` sampled candidates of every row of `logits` and their weights, which sum to one.

    Args:
        logits: [L, n], finite, float32 or float64.
        tau: temperature. As in the released code, zero or less stands for no noise and unscaled logits.
        k: candidates per row, 1..n.
        gumbel: add the noise; without it l = log_softmax(logits) / tau.
        index: [L, k] int64, take these candidates instead of drawing them (the noise still enters the weights).
        generator: source of the random numbers, on the device of `logits`; None is that device's default generator.

    Returns:
        index [L, k] int64 in the order of the draw, and prob [L, k], differentiable in `logits`.

    Raises:
        ValueError: a shape or dtype differs from the above, or `k` exceeds n.

    Example:
        >>> index, prob = gumbel_topk(torch.zeros(5, 8), tau=1.0, k=2)
        >>> index.shape, prob.sum(dim=1).allclose(torch.ones(5))
        (torch.Size([5, 2]), True)
    """
    _check(logits, k if index is None else index.size(-1), index)
    if tau <= 0:
        gumbel, tau = False, 1.0
    noise = gumbel_noise(logits, generator) if gumbel else None
    if index is not None:
        return index, torch.softmax(_perturb(logits, noise, tau).gather(1, index), dim=1)
    clocks = _exponential(logits, generator)
    prob, index = torch.ops.tas_fast.gumbel_topk.default(logits, noise, clocks, tau, k)
    return index, prob


def gumbel_softmax(
    logits: Tensor, tau: float, *, gumbel: bool = True, generator: torch.Generator | None = None
) -> Tensor:
    """Return softmax((log_softmax(logits) + noise) / tau) [L, n]: every candidate with its weight, nothing is drawn.

    Args, Raises: as `gumbel_topk`.
    """
    _check(logits, logits.size(-1), None)
    if tau <= 0:
        gumbel, tau = False, 1.0
    return torch.softmax(_perturb(logits, gumbel_noise(logits, generator) if gumbel else None, tau), dim=1)


def gumbel_noise(like: Tensor, generator: torch.Generator | None = None) -> Tensor:
    """Return standard Gumbel noise in the shape, dtype and device of `like`; always finite."""
    return -_exponential(like, generator).log()


def _exponential(like: Tensor, generator: torch.Generator | None) -> Tensor:
    return torch.empty_like(like).exponential_(generator=generator).clamp_(min=torch.finfo(like.dtype).tiny)


def _perturb(logits: Tensor, noise: Tensor | None, tau: float) -> Tensor:
    log_probs = torch.log_softmax(logits, dim=1)
    return (log_probs if noise is None else log_probs + noise) / tau


_wrong = partial(wrong, "gumbel_topk")


def _check(logits: Tensor, k: int, index: Tensor | None) -> None:
    if logits.dim() != 2 or logits.dtype not in (torch.float32, torch.float64):
        raise _wrong("logits", "float32 or float64 [L, n]", described(logits))
    if index is not None and (index.dim() != 2 or index.size(0) != logits.size(0) or index.dtype != torch.int64):
        raise _wrong("index", f"int64 [L, k] with L = {logits.size(0)}", described(index))
    if not 1 <= k <= logits.size(1):
        raise _wrong("k", f"in 1..n with n = {logits.size(1)} candidates", k)


def gumbel_topk_reference(
    logits: Tensor, noise: Tensor | None, clocks: Tensor, tau: float, k: int
) -> tuple[Tensor, Tensor]:
    perturbed = _perturb(logits, noise, tau)
    index = ((torch.softmax(perturbed, dim=1) + 1e-7) / clocks).topk(k, dim=1).indices
    return torch.softmax(perturbed.gather(1, index), dim=1), index


def gumbel_topk_backward_reference(grad_prob: Tensor, prob: Tensor, index: Tensor, tau: float, n: int) -> Tensor:
    grad_drawn = prob * (grad_prob - (grad_prob * prob).sum(1, keepdim=True)) / tau
    return prob.new_zeros(prob.size(0), n).scatter_(1, index, grad_drawn)


@fake("gumbel_topk")
def _(logits: Tensor, noise: Tensor | None, clocks: Tensor, tau: float, k: int) -> tuple[Tensor, Tensor]:
    _check(logits, k, None)
    shape = (logits.size(0), k)
    return logits.new_empty(shape), logits.new_empty(shape, dtype=torch.int64)


@fake("gumbel_topk_backward")
def _(grad_prob: Tensor, prob: Tensor, index: Tensor, tau: float, n: int) -> Tensor:
    return prob.new_empty(prob.size(0), n)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    logits, _, _, ctx.tau, _ = inputs
    ctx.candidates = logits.size(1)
    ctx.save_for_backward(*output)
    ctx.mark_non_differentiable(output[1])


def _backward(ctx: Any, grad_prob: Tensor, _: None) -> tuple[Tensor, None, None, None, None]:
    prob, index = ctx.saved_tensors
    grad_logits = torch.ops.tas_fast.gumbel_topk_backward.default(grad_prob, prob, index, ctx.tau, ctx.candidates)
    return grad_logits, None, None, None, None


differentiate("gumbel_topk", _backward, _setup_context)

implement("gumbel_topk", gumbel_topk_reference)
implement("gumbel_topk_backward", gumbel_topk_backward_reference)
