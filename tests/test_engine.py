"""The training loop: what it measures, where it stops, and that a stopped run goes on as if nothing had happened."""

import copy

import pytest
import torch
from torchvision.transforms import v2

from tas_fast.data import build_loader
from tas_fast.distill import CrossEntropy, Distillation
from tas_fast.engine import Interrupted, Interruption, Phase, Precision, Session, Supervised, accuracy, train
from tas_fast.errors import UsageError, UserError
from tas_fast.optim import cosine_lr, sgd

CPU = torch.device("cpu")


class Rows(list):
    """A metrics log in memory; positions are numbers of rows."""

    def position(self):
        return len(self)

    def close(self):
        pass


class Stopping(Supervised):
    """Asks the session to stop after a number of steps."""

    def __init__(self, interruption, steps, **settings):
        super().__init__(CrossEntropy(), **settings)
        self.interruption, self.left = interruption, steps

    def after_step(self, *_):
        self.left -= 1
        if self.left == 0:
            self.interruption.signum = 15
        return {}


def network():
    torch.manual_seed(1)
    return torch.nn.Sequential(
        torch.nn.Conv2d(1, 4, 3), torch.nn.BatchNorm2d(4), torch.nn.ReLU(), torch.nn.Flatten(), torch.nn.Linear(144, 10)
    )


def phase(method, *, lr=0.1, epochs=2, ema=False, **settings):
    model = network()
    average = torch.optim.swa_utils.AveragedModel(model, use_buffers=True) if ema else None
    return Phase(
        name="test",
        model=model,
        method=method,
        loader=build_loader("digits", None, "train", 64, limit=200),
        optimizer=sgd(model.parameters(), lr=lr, momentum=0.9, nesterov=True, weight_decay=1e-4),
        learning_rate=lambda position: cosine_lr(position, base=lr, epochs=epochs),
        epochs=epochs,
        precision=Precision(CPU),
        average=average,
        **settings,
    )


def session(folder, rows, *, resume=False, seconds=0.0):
    def metrics(position):
        del rows[position:]
        return rows

    return Session(folder, metrics, Interruption(), seconds=seconds, resume=resume)


def without_times(rows):
    return [{name: value for name, value in row.items() if name != "images_per_second"} for row in rows]


def test_training_learns_and_measures(tmp_path):
    rows = Rows()
    measured = train(phase(Supervised(CrossEntropy()), epochs=5), session(tmp_path, rows))
    assert [row["epoch"] for row in rows] == [0, 1, 2, 3, 4]
    assert rows[-1]["loss"] < rows[0]["loss"]
    assert rows[-1]["train_accuracy"] > rows[0]["train_accuracy"] + 20
    assert measured["images_per_second"] > 0
    assert measured["step_ms"] > 0


@pytest.mark.parametrize("variant", ["plain", "ema", "mixup"])
@pytest.mark.parametrize("steps", [1, 3, 4, 5, 8])
def test_stopped_training_goes_on_bit_for_bit(tmp_path, steps, variant):
    settings = {"ema": variant == "ema"}
    mixup = {"mixup": v2.MixUp(alpha=0.5, num_classes=10)} if variant == "mixup" else {}
    whole_rows, rows = Rows(), Rows()
    torch.manual_seed(7)
    whole = phase(Supervised(CrossEntropy(), **mixup), **settings)
    torch.manual_seed(7)
    train(whole, session(tmp_path / "whole", whole_rows))

    first = session(tmp_path / "parts", rows)
    stopped = phase(Stopping(first.interruption, steps, **mixup), **settings)
    torch.manual_seed(7)
    with pytest.raises(Interrupted):
        train(stopped, first)
    torch.manual_seed(12345)  # a fresh process has other random numbers
    resumed = phase(Supervised(CrossEntropy(), **mixup), **settings)
    train(resumed, session(tmp_path / "parts", rows, resume=True))

    for ours, theirs in ((whole.model, resumed.model), (whole.average, resumed.average)):
        if ours is not None:
            for name, tensor in ours.state_dict().items():
                assert torch.equal(tensor, theirs.state_dict()[name]), name
    assert without_times(rows) == without_times(whole_rows)


def test_a_compiled_network_trains_the_model_behind_it(tmp_path):
    compiled = phase(Supervised(CrossEntropy()))
    compiled.compiled = torch.compile(compiled.model, backend="eager")
    plain = phase(Supervised(CrossEntropy()))
    for each, name in ((compiled, "a"), (plain, "b")):
        train(each, session(tmp_path / name, Rows()))
    for ours, theirs in zip(compiled.model.parameters(), plain.model.parameters(), strict=True):
        assert torch.equal(ours, theirs)


def test_label_smoothing_acts_in_distillation():
    student, teacher, target = torch.randn(4, 3), torch.nn.Linear(2, 3), torch.tensor([0, 1, 2, 0])
    images = torch.randn(4, 2)
    loss = Distillation(teacher, alpha=0.0, temperature=1.0, label_smoothing=0.3)(images, student, target)
    assert loss.item() == pytest.approx(torch.nn.functional.cross_entropy(student, target, label_smoothing=0.3).item())


def test_epochs_end_after_max_steps(tmp_path):
    rows = Rows()
    train(phase(Supervised(CrossEntropy()), epochs=3, max_steps=2), session(tmp_path, rows))
    assert [row["step"] for row in rows] == [2, 4, 6]


def test_infinite_loss_is_an_error_that_names_the_place_and_keeps_good_checkpoints(tmp_path):
    rows, store = Rows(), session(tmp_path, Rows())
    with pytest.raises(UserError, match=r"the loss became (nan|inf) in test, epoch \d, by step \d; lower lr"):
        train(phase(Supervised(CrossEntropy()), lr=1e30, epochs=9), store)
    saved = store.checkpoints.load()
    assert saved is None or all(tensor.isfinite().all() for tensor in saved["model"].values())
    assert not rows


def test_accuracy_is_percent_and_leaves_the_mode_alone():
    model = network()
    loader = build_loader("digits", None, "test", 50)
    expected = copy.deepcopy(model).eval()
    correct = sum((expected(images).argmax(1) == classes).sum().item() for images, classes in loader)
    assert accuracy(model, loader, Precision(CPU)) == pytest.approx(100 * correct / loader.num_images)
    assert model.training


def test_gradients_are_clipped_to_the_norm():
    parameter = torch.nn.Parameter(torch.zeros(4))
    optimizer = sgd([parameter], lr=1.0, momentum=0.0, nesterov=True, weight_decay=0.0)
    parameter.grad = torch.full((4,), 10.0)
    Precision(CPU).step(optimizer, clip_grad=1.0)
    assert parameter.detach().norm().item() == pytest.approx(1.0, rel=1e-4)


def test_cpu_autocasts_to_bfloat16_only():
    with Precision(CPU, amp=True).autocast():
        assert torch.nn.functional.linear(torch.ones(1, 1), torch.ones(1, 1)).dtype == torch.bfloat16
    with pytest.raises(UsageError, match="float16 needs a CUDA device"):
        Precision(CPU, amp=True, dtype="float16")


def test_learning_rate_warms_up_and_falls_to_zero():
    rate = [cosine_lr(position, base=0.4, epochs=6, warmup_epochs=2) for position in (0, 1, 2, 2.9, 4, 6)]
    assert rate[:2] == [0, 0.2]
    assert rate[2] == rate[3] == 0.4
    assert rate[4] == pytest.approx(0.2)
    assert rate[5] == pytest.approx(0)
