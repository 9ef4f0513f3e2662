"""Searchable convolutions in a network that is not ours: two layers of `FragmentConv2d`, their logits, and a budget.

python examples/search_space_of_your_own.py
"""

import torch
import torch.nn.functional as F

from tas_fast import nn, ops
from tas_fast.data import build_loader

WIDTHS = torch.tensor([4, 8, 16, 24, 32])
BUDGET = 30.0  # channels of both layers together


class SearchableCNN(torch.nn.Module):
    def __init__(self, num_classes: int) -> None:
        super().__init__()
        choices = tuple(WIDTHS.tolist())
        self.first = nn.FragmentConv2d(1, 32, 3, padding=1, choices=choices, relu=True)
        self.second = nn.FragmentConv2d(32, 32, 3, stride=2, padding=1, choices=choices, relu=True)
        self.classifier = torch.nn.Linear(32, num_classes)
        self.logits = torch.nn.Parameter(torch.zeros(2, len(choices)))

    def forward(self, x: torch.Tensor, tau: float) -> torch.Tensor:
        index, prob = ops.gumbel_topk(self.logits, tau, k=2)
        x = self.second(self.first(x, index[0], prob[0]), index[1], prob[1])
        features = x.mean((2, 3))
        return F.linear(features, self.classifier.weight[:, : features.size(1)], self.classifier.bias)

    def expected_channels(self) -> torch.Tensor:
        return (self.logits.softmax(1) * WIDTHS).sum()


def main() -> None:
    torch.manual_seed(0)
    data = build_loader("digits", None, "search", 64)
    model = SearchableCNN(data.num_classes)
    weights = [p for name, p in model.named_parameters() if name != "logits"]
    weight_optimizer = torch.optim.SGD(weights, lr=0.1, momentum=0.9)
    logit_optimizer = torch.optim.Adam([model.logits], lr=0.05)
    for epoch in range(6):
        tau = 5.0 - 0.8 * epoch
        for images, classes, held_images, held_classes in data:
            weight_optimizer.zero_grad()
            F.cross_entropy(model(images, tau), classes).backward()
            weight_optimizer.step()
            loss = F.cross_entropy(model(held_images, tau), held_classes)
            loss = loss + 0.01 * (model.expected_channels() - BUDGET).abs()
            model.logits.grad = torch.autograd.grad(loss, model.logits)[0]
            logit_optimizer.step()
        print(f"epoch {epoch}: loss {loss.item():.3f}, expected channels {model.expected_channels().item():.1f}")
    print("widths", WIDTHS[model.logits.argmax(1)].tolist())


if __name__ == "__main__":
    main()
