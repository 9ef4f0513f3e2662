"""How a benchmark compares: providers take turns in one process, and the record says who ran where on which bytes."""

import platform
import statistics
import time
from collections.abc import Callable

import pytest
import torch
from pytest_benchmark.fixture import BenchmarkFixture

from tas_fast import _backend

Call = Callable[[], object]
ROUNDS = 15


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def device(request: pytest.FixtureRequest) -> torch.device:
    return torch.device(request.param)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if torch.cuda.is_available():
        return
    for item in items:
        if item.get_closest_marker("gpu"):
            item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))


def describe(device: torch.device) -> dict[str, str]:
    """Return what a number needs beside it to be a number: device, threads, versions, who served."""
    if device.type == "cuda":
        name = torch.cuda.get_device_name(device)
    else:
        name = f"{_processor()}, {torch.get_num_threads()} threads, {torch.backends.cpu.get_cpu_capability()}"
    return {"device": name, "torch": torch.__version__, "backend": _backend.summary(device.type)}


@pytest.fixture
def compare(benchmark: BenchmarkFixture, device: torch.device) -> Callable[..., None]:
    """Return compare(calls, subject=..., bytes_floor=...), which measures all calls in turn.

    Taking turns, drift of the machine meets every provider alike; each turn begins with one untimed call. extra_info
    gets the median seconds of every provider, ratios to the subject (above 1: the subject is faster), and where given
    the bytes that must move at least with the bandwidth that the subject reached. The benchmark's own statistics are
    the subject's.
    """

    def run(calls: dict[str, Call], *, subject: str, bytes_floor: int | None = None) -> None:
        seconds: dict[str, list[float]] = {name: [] for name in calls}
        for call in calls.values():
            measure(call, device)
        for _ in range(ROUNDS):
            for name, call in calls.items():
                call()  # its data are back in the cache that the provider before it filled
                seconds[name].append(measure(call, device))
        median = {name: statistics.median(values) for name, values in seconds.items()}
        benchmark.extra_info.update(
            describe(device),
            median_seconds=median,
            ratio_to_subject={name: value / median[subject] for name, value in median.items() if name != subject},
        )
        if bytes_floor is not None:
            bandwidth = bytes_floor / median[subject] / 1e9
            benchmark.extra_info.update(bytes_floor=bytes_floor, gigabytes_per_second=bandwidth)
        benchmark.pedantic(lambda: measure(calls[subject], device), rounds=ROUNDS, warmup_rounds=1)

    return run


def measure(call: Call, device: torch.device) -> float:
    """Return seconds for one call: by events on a CUDA device, by the clock elsewhere."""
    if device.type != "cuda":
        start = time.perf_counter()
        call()
        return time.perf_counter() - start
    begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    begin.record()
    call()
    end.record()
    end.synchronize()
    return begin.elapsed_time(end) / 1e3


def _processor() -> str:
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as lines:
            return next(line.split(":")[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()
