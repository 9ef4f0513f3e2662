"""Knowledge distillation: cross entropy with the labels plus divergence from the teacher's softened prediction.

    loss = ((1 - alpha) sum_n CE(target_n, softmax(s_n)) + alpha T^2 sum_n KL(softmax(t_n / T) || softmax(s_n / T))) / N

    s = student, t = teacher [N, C] logits    target [N] classes or [N, C] probabilities    T = temperature

The gradient, in the student alone, needs the same softmaxes, so the forward pass computes and saves it:

    grad = ((1 - alpha) (softmax(s) sum(target) - target) + alpha T (softmax(s / T) - softmax(t / T))) / N

A fast version handles a row per program: one read of each input, one write of grad. Source: Hinton, Vinyals and Dean
(2015); the orientation of alpha is that of the released TAS code.
"""

from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from tas_fast.ops._library import accumulation_dtype, define, described, differentiate, fake, implement, wrong

define(
    "distillation_loss(Tensor student, Tensor teacher, Tensor target, float alpha, float temperature) "
    "-> (Tensor loss, Tensor grad)"
)


def distillation_loss(student: Tensor, teacher: Tensor, target: Tensor, alpha: float, temperature: float) -> Tensor:
    """Return (1 - alpha) * cross entropy + alpha * T^2 * KL divergence from the teacher, averaged over the batch.

    Computed in float32 (float64 for float64 logits). Teacher and target are constants: they receive no gradient.

    Args:
        student: [N, C] logits.
        teacher: [N, C] logits, any floating dtype.
        target: [N] int64 classes in 0..C-1, or [N, C] floating-point probabilities (smoothed or mixed labels).
        alpha: share of the divergence, 0..1.
        temperature: T > 0.

    Returns:
        Scalar, float32 (float64 for float64 logits); NaN for an empty batch, as torch's cross entropy.

    Raises:
        ValueError: a shape, dtype or number differs from the above.

    Example:
        >>> logits = torch.tensor([[2.0, 0.0]])
        >>> round(distillation_loss(logits, logits, torch.tensor([0]), 0.9, 4.0).item(), 4)  # 0.1 * cross entropy
        0.0127
    """
    _check(student, teacher, target, alpha, temperature)
    constants = (teacher.detach(), target.detach())
    return torch.ops.tas_fast.distillation_loss.default(student, *constants, alpha, temperature)[0]


_wrong = partial(wrong, "distillation_loss")


def _check(student: Tensor, teacher: Tensor, target: Tensor, alpha: float, temperature: float) -> None:
    shape = student.shape
    if student.dim() != 2 or not student.is_floating_point():
        raise _wrong("student", "floating-point [N, C]", described(student))
    if teacher.shape != shape or not teacher.is_floating_point():
        raise _wrong("teacher", f"floating point and {tuple(shape)} like student", described(teacher))
    classes = target.shape == shape[:1] and target.dtype == torch.int64
    if not classes and (target.shape != shape or not target.is_floating_point()):
        expected = f"int64 [N] or floating-point [N, C] with [N, C] = {tuple(shape)}"
        raise _wrong("target", expected, described(target))
    if not 0 <= alpha <= 1:
        raise _wrong("alpha", "in 0..1", alpha)
    if not temperature > 0:
        raise _wrong("temperature", "positive", temperature)


def distillation_loss_reference(
    student: Tensor, teacher: Tensor, target: Tensor, alpha: float, temperature: float
) -> tuple[Tensor, Tensor]:
    dtype = accumulation_dtype(student.dtype)
    s, t = student.to(dtype), teacher.to(dtype)
    label = F.one_hot(target, s.size(1)).to(dtype) if target.dim() == 1 else target.to(dtype)
    log_s, soft_log_s, soft_log_t = s.log_softmax(1), (s / temperature).log_softmax(1), (t / temperature).log_softmax(1)
    soft_s, soft_t = soft_log_s.exp(), soft_log_t.exp()
    cross_entropy = -(label * log_s).sum()
    divergence = (soft_t * (soft_log_t - soft_log_s)).sum()
    loss = (1 - alpha) * cross_entropy + alpha * temperature**2 * divergence
    grad = (1 - alpha) * (log_s.exp() * label.sum(1, keepdim=True) - label) + alpha * temperature * (soft_s - soft_t)
    samples = s.size(0)
    return loss / samples if samples else torch.full_like(loss, float("nan")), (grad / max(samples, 1)).to(
        student.dtype
    )


@fake("distillation_loss")
def _(student: Tensor, teacher: Tensor, target: Tensor, alpha: float, temperature: float) -> tuple[Tensor, Tensor]:
    _check(student, teacher, target, alpha, temperature)
    return student.new_empty((), dtype=accumulation_dtype(student.dtype)), student.new_empty(student.shape)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    ctx.save_for_backward(output[1])
    ctx.mark_non_differentiable(output[1])


def _backward(ctx: Any, grad_loss: Tensor, _: None) -> tuple[Tensor, None, None, None, None]:
    (grad,) = ctx.saved_tensors
    return (grad_loss * grad).to(grad.dtype), None, None, None, None


differentiate("distillation_loss", _backward, _setup_context)

implement("distillation_loss", distillation_loss_reference)
