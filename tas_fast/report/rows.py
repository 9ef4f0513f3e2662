"""The rows of `metrics.jsonl` as plots want them."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np

Rows = list[dict[str, Any]]
MAX_POINTS = 400


def epochs_of(rows: Rows) -> np.ndarray:
    """Return how many epochs were done at each row: the only row of epoch 0 is at 1.0, the first of two at 0.5."""
    done = []
    for epoch, group in itertools.groupby(rows, key=lambda row: row["epoch"]):
        count = len(list(group))
        done += [epoch + (i + 1) / count for i in range(count)]
    return np.array(done)


def thinned(rows: Rows, limit: int = MAX_POINTS) -> Rows:
    """Return at most `limit` of `rows` at even distances, first and last included."""
    if len(rows) <= limit:
        return rows
    return [rows[i] for i in np.linspace(0, len(rows) - 1, limit).round().astype(int)]


def rows_with(rows: Rows, phase: str, name: str) -> Rows:
    """Return the rows of `phase` that have a value called `name`."""
    return [row for row in rows if row["phase"] == phase and row.get(name) is not None]
