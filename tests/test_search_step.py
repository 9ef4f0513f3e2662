"""Search steps against the original's formulation with the same samples: logits, weights and running statistics."""

import pytest
import torch
from original_search import OriginalSearch, OriginalSupernet, copy_weights

from tas_fast.config import TasConfig
from tas_fast.engine import Precision
from tas_fast.methods.tas import TAS, Supernet
from tas_fast.optim import sgd


class Samples:
    """The same pairs of widths for both sides; their weights follow from each side's own logits, without noise."""

    def __init__(self, rows, candidates):
        self.generator = torch.Generator().manual_seed(6)
        self.rows, self.candidates, self.drawn = rows, candidates, []

    def ours(self, net):
        index = torch.stack([torch.randperm(self.candidates, generator=self.generator)[:2] for _ in range(self.rows)])
        self.drawn.append(index)
        return net.sample(1.7, width_index=index, gumbel=False)

    def theirs(self, logits, only_weights=False):
        scaled = logits.log_softmax(1) / 1.7
        if only_weights:
            return scaled.softmax(1)
        index = self.drawn.pop(0)
        return index, scaled.gather(1, index).softmax(1)


def batches(steps, size):
    generator = torch.Generator().manual_seed(4)
    for _ in range(steps):
        images = torch.randn(2, 6, 3, size, size, generator=generator, dtype=torch.float64)
        classes = torch.randint(5, (2, 6), generator=generator)
        yield images[0], classes[0], images[1], classes[1]


@pytest.mark.parametrize(
    ("model", "ratio", "steps"), [("resnet20", 0.2, 10), ("resnet20", 0.9, 10), ("resnet18", 0.5, 2)]
)
def test_steps_equal_the_original(model, ratio, steps):
    torch.manual_seed(0)
    # Projections that halve an odd size round up here and down there, so sizes stay even.
    size = 16 if model == "resnet20" else 64
    ours = Supernet(model, 5, image_size=size).double()
    theirs = OriginalSupernet(ours.space).double()
    copy_weights(ours, theirs)
    unpruned = ours.space.unpruned.macs()
    config = TasConfig(arch_lr=1e-3, macs_loss="released", unsampled_norms="skip", lr=0.01)
    method = TAS(ours, config, ratio * unpruned, seed=3)
    optimizer = sgd(ours.weight_parameters(), lr=0.01, momentum=0.9, nesterov=True, weight_decay=5e-4)
    method.prepare(ours, optimizer)
    method.before_epoch(0, 1)
    original = OriginalSearch(theirs, ratio * unpruned / 1e6, unpruned / 1e6, lr=0.01)
    samples = Samples(len(ours.space.widths), 8)
    method._sample, theirs.select = samples.ours, samples.theirs
    for batch in batches(steps, size):
        optimizer.zero_grad()
        loss, _, _ = method.loss(ours, batch)
        loss.backward()
        optimizer.step()
        values = method.after_step(ours, batch, Precision(torch.device("cpu")))
        losses = original.step(batch)
        assert loss.item() == pytest.approx(losses[0], rel=1e-6)
        assert values["arch_loss"].item() == pytest.approx(losses[1], rel=1e-5)
    as_theirs = OriginalSupernet(ours.space).double()
    copy_weights(ours, as_theirs)
    expected = theirs.state_dict()
    for name, tensor in as_theirs.state_dict().items():
        if not name.endswith("num_batches_tracked"):
            assert torch.allclose(tensor, expected[name], rtol=1e-5, atol=1e-7), name
