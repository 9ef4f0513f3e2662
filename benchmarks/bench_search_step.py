"""One search step (weights and architecture): the original's formulation, plain training, and ours, taking turns.

`median_seconds` has `original` (float32, contiguous), `original_channels_last`, `two_training_steps` (of the unpruned
network, channels_last: what a user has in mind as the least), `ours` (float32) and `ours_amp`.
"""

from dataclasses import dataclass

import pytest
import torch
import torch.nn.functional as F
from original_search import OriginalSearch, OriginalSupernet, copy_weights

from tas_fast.config import TasConfig
from tas_fast.engine import Precision
from tas_fast.methods.tas import TAS, Supernet
from tas_fast.models import build
from tas_fast.optim import sgd


@dataclass(frozen=True)
class Case:
    model: str
    size: int
    batch_cpu: int
    batch_cuda: int


CASES = (
    Case("resnet20", 32, 64, 256),
    Case("resnet32", 32, 64, 256),
    Case("resnet56", 32, 64, 256),
    Case("resnet110", 32, 64, 256),
    Case("resnet18", 224, 8, 256),
    Case("resnet50", 224, 8, 256),
)


def settings():
    return {"lr": 0.1, "momentum": 0.9, "nesterov": True, "weight_decay": 5e-4}


def ours(case, device, batch, amp):
    torch.manual_seed(0)
    supernet = Supernet(case.model, 10, image_size=case.size).to(device).to(memory_format=torch.channels_last)
    unpruned = supernet.space.unpruned.macs()
    method, precision = TAS(supernet, TasConfig(), 0.5 * unpruned, seed=0), Precision(device, amp)
    optimizer = sgd(supernet.weight_parameters(), **settings())
    method.before_epoch(0, 1)

    def step():
        optimizer.zero_grad()
        with precision.autocast():
            loss, _, _ = method.loss(supernet, batch)
        precision.backward(loss)
        precision.step(optimizer)
        method.after_step(supernet, batch, precision)

    return supernet, step


def original(supernet, device, batch, layout):
    net = OriginalSupernet(supernet.space).to(device).to(memory_format=layout)
    copy_weights(supernet, net)
    unpruned = supernet.space.unpruned.macs() / 1e6
    search = OriginalSearch(net, 0.5 * unpruned, unpruned)
    return lambda: search.step(batch)


def training(case, device, batch):
    model = build(case.model, 10, image_size=case.size).to(device).to(memory_format=torch.channels_last)
    optimizer = sgd(model.parameters(), **settings())

    def twice():
        for images, classes in (batch[:2], batch[2:]):
            optimizer.zero_grad()
            F.cross_entropy(model(images), classes).backward()
            optimizer.step()

    return twice


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.model)
def test_search_step(case, device, compare):
    number = case.batch_cuda if device.type == "cuda" else case.batch_cpu
    shape, classes = (number, 3, case.size, case.size), torch.arange(number, device=device) % 10
    plain = tuple(torch.randn(shape, device=device) for _ in range(2))
    last = tuple(images.contiguous(memory_format=torch.channels_last) for images in plain)
    batch = (last[0], classes, last[1], classes)
    supernet, step = ours(case, device, batch, amp=False)
    calls = {
        "original": original(supernet, device, (plain[0], classes, plain[1], classes), torch.contiguous_format),
        "original_channels_last": original(supernet, device, batch, torch.channels_last),
        "two_training_steps": training(case, device, batch),
        "ours": step,
        "ours_amp": ours(case, device, batch, amp=True)[1],
    }
    compare(calls, subject="ours")
