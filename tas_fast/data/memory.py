"""How much memory is there, asked before a data set is decoded into it."""

from __future__ import annotations

import os
from pathlib import Path

import torch

from tas_fast.errors import UserError


def available_memory() -> int:
    """Bytes this process may still take: what the system calls available, and the control group's rest if less."""
    available = _meminfo()
    rest = _control_group_rest(Path("/sys/fs/cgroup"))
    return available if rest is None else min(available, rest)


def check_memory(needed: int, device: torch.device, what: str) -> None:
    """Nothing if `needed` bytes fit into main memory and, for a CUDA device, into that as well.

    Raises:
        UserError: they do not; the message says how much is needed and what can be done.
    """
    places = [("memory", available_memory())]
    if device.type == "cuda":
        places.append((f"memory of {device}", torch.cuda.mem_get_info(device)[0]))
    for place, available in places:
        if needed > available:
            raise UserError(
                f"{what} need {needed / 2**30:.1f} GiB of {place}, {available / 2**30:.1f} GiB are available; "
                "use --loader torch, a smaller --image-size or fewer images (--limit)"
            )


def _meminfo() -> int:
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
    except FileNotFoundError:  # not Linux: all of the machine's memory is the only number there is
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    fields = dict(line.split(":", 1) for line in lines)
    return int(fields["MemAvailable"].split()[0]) * 1024


def _control_group_rest(folder: Path) -> int | None:
    """Limit minus use of a version 2 control group; page cache that can go does not count as use."""
    try:
        limit, used = (folder / "memory.max").read_text().strip(), int((folder / "memory.current").read_text())
        statistics = dict(line.split() for line in (folder / "memory.stat").read_text().splitlines())
    except OSError:
        return None
    return None if limit == "max" else max(0, int(limit) - used + int(statistics["inactive_file"]))
