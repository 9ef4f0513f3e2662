"""Reports and metrics rows for the tests of the run's folder: what a search writes, made up."""

import math

from tas_fast.architecture import Architecture
from tas_fast.report.values import Pruned, Report, Seconds, Unpruned

RATIOS = (0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)


def report(**changes):
    values = {
        "command": "python -m tas_fast.search --amp",
        "version": "0.1.0",
        "device": "cpu (2 threads)",
        "backend": "reference (no compiler on PATH)",
        "seed": 0,
        "dataset": "digits",
        "model": "resnet20",
        "method": "tas",
        "target": {"macs": 20_406_597, "ratio": 0.5, "reached": True},
        "unpruned": Unpruned(98.89, 40_813_194, 269_722),
        "pruned": Pruned(98.61, 98.06, 20_900_000, 0.51209, 141_203, 0.4765),
        "seconds": Seconds(31.2, 70.4, 44.9, 151.0),
        "search_step_ms": 412.3,
        "images_per_second": 1873.0,
        "notes": (),
    }
    return Report(**{**values, **changes})


def search_rows(model, epochs=12, search="shape", target_macs=20_000_000):
    """Rows of a search whose probabilities sharpen from uniform towards a different width in each layer."""
    skeleton = Architecture(model, 10).skeleton
    full_macs = Architecture(model, 10).macs()
    choices = [[math.trunc(n * ratio) for ratio in RATIOS] for n in skeleton.full_widths()]
    depths = [sorted({1, *range(1, n, 2), n}) for n in skeleton.blocks]
    rows = []
    for epoch in range(epochs):
        progress = (epoch + 1) / epochs
        width_probs = [sharpen(len(row), (3 * i) % len(row), progress) for i, row in enumerate(choices)]
        depth_probs = [sharpen(len(row), i % len(row), progress) for i, row in enumerate(depths)]
        rows.append(
            {
                "phase": "search",
                "epoch": epoch,
                "step": 10 * (epoch + 1),
                "loss": 2.3 * (1 - 0.8 * progress),
                "accuracy": 10 + 85 * progress**0.5,
                "expected_macs": full_macs * (0.35 + 0.15 * progress),
                "argmax_macs": round(full_macs * (0.7 - 0.2 * progress)),
                "target_macs": target_macs,
                "tau": 5.0 - 4.9 * progress,
                "lr": 0.1,
                "images_per_second": 1873.0,
                "width_probs": width_probs if search != "depth" else None,
                "width_choices": choices if search != "depth" else None,
                "depth_probs": depth_probs if search != "width" else None,
                "depth_choices": depths if search != "width" else None,
            }
        )
    return rows


def sharpen(count, favourite, progress):
    scores = [math.exp(4 * progress * (1 - abs(i - favourite) / count)) for i in range(count)]
    return [score / sum(scores) for score in scores]


def training_rows(phase, epochs=12, best=98.0):
    return [
        {
            "phase": phase,
            "epoch": epoch,
            "step": 10 * (epoch + 1),
            "loss": 2.3 / (epoch + 1),
            "train_accuracy": best * (1 - math.exp(-epoch / 3 - 0.2)),
            "accuracy": best * (1 - math.exp(-epoch / 2 - 0.3)),
            "lr": 0.1,
            "images_per_second": 4000.0,
        }
        for epoch in range(epochs)
    ]


def found(model, search="shape", num_classes=10):
    """A smaller network of the kind that each search derives."""
    skeleton = Architecture(model, num_classes).skeleton
    full = skeleton.full_widths()
    widths = None if search == "depth" else [max(1, math.trunc(n * RATIOS[(3 * i) % 8])) for i, n in enumerate(full)]
    depths = None if search == "width" else [max(1, n - 1 - i % 2) for i, n in enumerate(skeleton.blocks)]
    return Architecture(model, num_classes, widths=widths, depths=depths)
