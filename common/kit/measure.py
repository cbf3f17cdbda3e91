"""Measuring: the time of some work, a device's fastest matrix product, AdamW, peak memory."""

import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

import torch

from common.kit.device import synchronize


def timed(work: Callable, device: torch.device):
    """(seconds, result) of work(). Waits for the device before and after it."""
    synchronize(device)
    start = time.perf_counter()
    result = work()
    synchronize(device)
    return time.perf_counter() - start, result


def spread(values: list[float]) -> float:
    """Half the range over the median: 0.02 is ±2 %."""
    return (max(values) - min(values)) / 2 / median(values)


def matmul_peak(device: torch.device, dtype: torch.dtype) -> float:
    """FLOP/s of the fastest square matrix product in dtype, an upper limit for a training step.

    The first product of each size is not timed: a GPU loads its kernels then. The minimum time
    counts. A dtype that the device only emulates is measured for a few seconds at most.
    """
    best = 0.0
    for n in (1024, 2048) if device.type == "cpu" else (4096, 8192):
        a = torch.randn(n, n, device=device).to(dtype)
        b = torch.randn(n, n, device=device).to(dtype)
        a @ b
        times = []
        while not times or len(times) < 10 and sum(times) < 1:
            times.append(timed(lambda a=a, b=b: a @ b, device)[0])
        best = max(best, 2 * n**3 / min(times))
        if sum(times) >= 1:
            break
    return best


# AdamW's: tensor by tensor, operation by operation on lists of tensors, and in one kernel.
FORMS = {"for-loop": {"foreach": False}, "foreach": {"foreach": True}, "fused": {"fused": True}}


def adamw_ms(model: torch.nn.Module) -> dict[str, float]:
    """The time of an AdamW update in each of its FORMS, in ms. The weights do not change."""
    parameters, found = list(model.parameters()), {}
    for p in parameters:
        p.grad = torch.zeros_like(p)
    for name, form in FORMS.items():
        optimizer = torch.optim.AdamW(parameters, lr=0.0, **form)
        times = [timed(optimizer.step, parameters[0].device)[0] for _ in range(7)]
        found[name] = 1000 * median(times[2:])  # the first ones allocate the moments
    model.zero_grad()
    return found


# FLOP/s of dense 16-bit products in NVIDIA's data sheets. A PCIe H100 has another value.
DATA_SHEETS = {"H100 80GB HBM3": 989e12, "H200": 989e12, "A100": 312e12, "Tesla T4": 65e12}


def data_sheet_peak(device: torch.device) -> float | None:
    """The 16-bit FLOP/s of the GPU's data sheet; None if it is not in DATA_SHEETS."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else ""
    return next((peak for model, peak in DATA_SHEETS.items() if model in name), None)


def read_bandwidth(device: torch.device) -> float:
    """Bytes/s that the device reads from its memory: the fastest of ten sums over 1 GB."""
    a = torch.ones(2**28, device=device)
    a.sum()
    return a.nbytes / min(timed(a.sum, device)[0] for _ in range(10))


class PeakMemory:
    """Peak memory in bytes from now on: of the GPU or, on Linux, of this process."""

    def __init__(self, device: torch.device):
        self.device = device
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
        elif self._linux():
            Path("/proc/self/clear_refs").write_text("5")  # reset the maximum

    def read(self) -> int | None:
        if self.device.type == "cuda":
            return torch.cuda.max_memory_allocated(self.device)
        if self._linux():
            status = Path("/proc/self/status").read_text()
            return int(status.split("VmHWM:")[1].split()[0]) * 1024
        return None

    def _linux(self) -> bool:
        return self.device.type == "cpu" and Path("/proc/self/clear_refs").exists()
