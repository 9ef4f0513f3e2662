"""A run in progress: its folder, checkpoints, metrics and results, and where it stands after having been stopped."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tas_fast.checkpoint import CheckpointStore, rng_state, set_rng_state
from tas_fast.engine.interrupt import Interruption

log = logging.getLogger(__name__)


class Session:
    """State shared by the phases of one run.

    Args:
        folder: the run's folder.
        metrics: opens the metrics log at a byte offset; the log has `append(row)`, `position()`, `close()`.
        interruption: an active `Interruption`.
        seconds: time between checkpoints; 0: after every step.
        keep: checkpoints kept.
        resume: continue from the newest whole checkpoint.

    Attributes:
        results: what finished phases left for later ones (plain values); part of every checkpoint.
    """

    def __init__(
        self,
        folder: Path,
        metrics: Callable[[int], Any],
        interruption: Interruption,
        *,
        seconds: float = 10.0,
        keep: int = 3,
        resume: bool = False,
    ) -> None:
        self.folder = folder
        self.interruption = interruption
        self.seconds = seconds
        self.checkpoints = CheckpointStore(folder / "checkpoints", keep)
        self.results: dict[str, Any] = {}
        self._saved_at = time.monotonic()
        self._pending = self.checkpoints.load() if resume else None
        if self._pending:
            self.results = self._pending["results"]
        self.metrics = metrics(self._pending["metrics_position"] if self._pending else 0)

    def finished(self, phase: str) -> bool:
        """Return whether `phase` ended before the checkpoint this run resumed from."""
        return phase in self.results

    def restore(self, phase: str) -> dict[str, Any] | None:
        """Return the checkpoint to continue `phase` from, torch's generators set back; None: from the beginning."""
        if self._pending is None or self._pending["phase"] != phase:
            return None
        state, self._pending = self._pending, None
        set_rng_state(state["rng"])
        log.info("resuming %s at epoch %d, step %d", phase, state["progress"]["epoch"], state["progress"]["step"])
        return state

    def after_step(self, phase: str, state: Callable[[], dict[str, Any]]) -> None:
        """Save when it is time or the run was asked to stop; raises `Interrupted` in the latter case."""
        asked = self.interruption.signum is not None
        if asked or time.monotonic() - self._saved_at >= self.seconds:
            self.save(phase, state())
        if asked:
            self.interruption.raise_if_asked()

    def finish(self, phase: str, result: dict[str, Any]) -> None:
        """Record the result of `phase`; the next phase begins after this checkpoint."""
        self.results[phase] = result
        self.save(phase, {})
        self.interruption.raise_if_asked()

    def save(self, phase: str, state: dict[str, Any]) -> None:
        """Write a checkpoint of `phase`."""
        position = self.metrics.position()
        self.checkpoints.save(
            {"phase": phase, "results": self.results, "metrics_position": position, "rng": rng_state(), **state}
        )
        self._saved_at = time.monotonic()
