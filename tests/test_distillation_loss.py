"""distillation_loss: cross entropy with the labels plus divergence from the teacher."""

import re
from functools import partial

import op_checks
import original_formulation as original
import pytest
import torch
import torch.nn.functional as F
from golden import load_golden
from hypothesis import given, settings
from hypothesis import strategies as st

from tas_fast import ops

OPERATOR = torch.ops.tas_fast.distillation_loss.default
SETTINGS = [(0.9, 4.0), (0.5, 1.0), (0.0, 2.0), (1.0, 3.0)]


def sample(n=6, classes=10, dtype=torch.float32, device="cpu"):
    """Return student, teacher, target."""
    student, teacher = (3 * torch.randn(n, classes, device=device).to(dtype) for _ in range(2))
    return student, teacher, torch.randint(classes, (n,), device=device)


def bound(function, teacher, target, alpha, temperature):
    """Return the loss as a function of the student alone, for constants in the student's type."""
    return lambda student: function(student, teacher.to(student.dtype), target, alpha, temperature)


@pytest.mark.parametrize(("alpha", "temperature"), SETTINGS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_matches_cross_entropy_and_kl_div(dtype, alpha, temperature, device):
    student, *constants = sample(dtype=dtype, device=device)
    operator, opponent = (
        bound(function, *constants, alpha, temperature)
        for function in (ops.distillation_loss, original.distillation_loss)
    )
    op_checks.check_matches(operator, opponent, [student])
    op_checks.check_gradients(operator, opponent, [student])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_low_precision_is_computed_in_float32(dtype, device):
    student, teacher, target = sample(dtype=dtype, device=device)
    student.requires_grad_()
    loss = ops.distillation_loss(student, teacher, target, 0.9, 4.0)
    (grad,) = torch.autograd.grad(loss, student)
    wide = student.detach().float().requires_grad_()
    expected = original.distillation_loss(wide, teacher.float(), target, 0.9, 4.0)
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(grad, torch.autograd.grad(expected, wide)[0].to(dtype))


@settings(deadline=None, max_examples=30)
@given(n=st.integers(1, 5), classes=st.integers(1, 12), alpha=st.floats(0, 1), temperature=st.floats(0.5, 20))
def test_matches_cross_entropy_and_kl_div_for_any_setting(n, classes, alpha, temperature):
    student, *constants = sample(n, classes, torch.float64)
    expected = original.distillation_loss(student, *constants, alpha, temperature)
    torch.testing.assert_close(ops.distillation_loss(student, *constants, alpha, temperature), expected)


def test_gradients_are_those_of_finite_differences():
    student, *constants = sample(dtype=torch.float64)
    op_checks.check_gradcheck(bound(ops.distillation_loss, *constants, 0.7, 3.0), [student])


@pytest.mark.parametrize("soft", [False, True])
def test_passes_opcheck(soft, device):
    student, teacher, target = sample(device=device)
    target = F.one_hot(target, 10).float() if soft else target
    op_checks.check_operator(OPERATOR, [student.requires_grad_(), teacher, target, 0.9, 4.0])


def test_compiles_for_varying_batches():
    teacher, target = torch.randn(7, 10), torch.arange(7)

    def loss(student):
        n = student.size(0)
        return ops.distillation_loss(student, teacher[:n], target[:n], 0.9, 4.0)

    op_checks.check_compiles(loss, [[torch.randn(n, 10)] for n in (3, 4, 7)])


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"student": torch.zeros(10)}, r"student must be floating-point \[N, C\], got float32 \(10,\)"),
        ({"teacher": torch.zeros(6, 9)}, r"teacher must be .*\(6, 10\) like student, got float32 \(6, 9\)"),
        ({"target": torch.zeros(5, dtype=torch.int64)}, r"target must be int64 \[N\].*\(5,\)"),
        ({"target": torch.zeros(6, dtype=torch.int32)}, "target must be.*int32"),
        ({"alpha": 1.5}, r"alpha must be in 0\.\.1, got 1\.5"),
        ({"temperature": 0.0}, r"temperature must be positive, got 0\.0"),
    ],
)
def test_rejects(changes, words):
    valid = {"student": torch.zeros(6, 10), "teacher": torch.zeros(6, 10), "target": torch.zeros(6, dtype=torch.int64)}
    with pytest.raises(ValueError, match=f"distillation_loss: {words}"):
        ops.distillation_loss(**{**valid, "alpha": 0.9, "temperature": 4.0, **changes})


def test_teacher_receives_no_gradient(device):
    student, teacher, target = sample(device=device)
    teacher.requires_grad_()
    assert not ops.distillation_loss(student, teacher, target, 0.9, 4.0).requires_grad


def test_probabilities_as_targets(device):
    student, teacher, target = sample(dtype=torch.float64, device=device)
    smooth = 0.9 * F.one_hot(target, 10).double() + 0.01
    loss = partial(ops.distillation_loss, teacher=teacher, target=smooth, alpha=0.0, temperature=1.0)
    opponent = partial(F.cross_entropy, target=smooth)
    torch.testing.assert_close(loss(student), opponent(student))
    student.requires_grad_()
    grads = [torch.autograd.grad(function(student), student)[0] for function in (loss, opponent)]
    torch.testing.assert_close(*grads)


def test_hard_targets_equal_their_one_hot_form(device):
    student, teacher, target = sample(device=device)
    hard = ops.distillation_loss(student, teacher, target, 0.5, 2.0)
    assert torch.equal(ops.distillation_loss(student, teacher, F.one_hot(target, 10).float(), 0.5, 2.0), hard)


def test_equal_predictions_have_no_divergence(device):
    student, _, target = sample(device=device)
    loss = ops.distillation_loss(student, student.clone(), target, 1.0, 4.0)
    torch.testing.assert_close(loss, torch.zeros_like(loss), rtol=0, atol=1e-6)


def test_large_logits_stay_finite(device):
    student = torch.tensor([[1e4, -1e4, 0.0]], device=device, requires_grad=True)
    loss = ops.distillation_loss(student, -student.detach(), torch.tensor([0], device=device), 0.5, 1.0)
    (grad,) = torch.autograd.grad(loss, student)
    assert loss.isfinite()
    assert grad.isfinite().all()


def test_empty_batch_is_nan_as_in_cross_entropy(device):
    student, teacher, target = sample(n=0, device=device)
    assert ops.distillation_loss(student.requires_grad_(), teacher, target, 0.9, 4.0).isnan()


def test_golden_recordings():
    recorded = load_golden("distill")
    names = [name for name in recorded if name.startswith("loss[")]
    assert names
    for name in names:
        alpha, temperature = map(float, re.findall(r"[\d.]+", name))
        student = recorded["student"].clone().requires_grad_()
        loss = ops.distillation_loss(student, recorded["teacher"], recorded["target"], alpha, temperature)
        (grad,) = torch.autograd.grad(loss, student)
        torch.testing.assert_close(loss, recorded[name], rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(grad, recorded[name.replace("loss", "grad")], rtol=1e-5, atol=1e-6)
