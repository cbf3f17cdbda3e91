"""Measuring: a step's time, a device's limit, the memory at its fullest, a table of rungs."""

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median

import torch
from matplotlib.figure import Figure

from common.device import synchronize
from common.model import GPTConfig, causal_attention
from common.runlog import save_picture
from common.speed import flash_attention

MOST_LOSS_DIFFERENCE = 0.02  # nats; bf16 has 8 bits of mantissa
MOST_DRIFT = 0.15  # of the time that the same work takes, first and last


def timed(work: Callable, device: torch.device):
    """(seconds, what work returned), the device waited for before and after, and not within."""
    synchronize(device)
    start = time.perf_counter()
    result = work()
    synchronize(device)
    return time.perf_counter() - start, result


def matmul_peak(device: torch.device, dtype: torch.dtype) -> float:
    """FLOP/s of the fastest of some square products in dtype: the ceiling a training step has.

    The fastest time of the fastest size counts, so that a share of this peak is not flattered. A
    type that the device only emulates is tried for little more than a second.
    """
    best = 0.0
    for n in (1024, 2048) if device.type == "cpu" else (4096, 8192):
        a = torch.randn(n, n, device=device).to(dtype)
        b = torch.randn(n, n, device=device).to(dtype)
        times = []
        while len(times) < 12 and sum(times) < 1:
            times.append(timed(lambda a=a, b=b: a @ b, device)[0])
        best = max(best, 2 * n**3 / min(times[2:] or times))
        if sum(times) >= 1:
            break
    return best


def attention_gain(shape: tuple, dtype: torch.dtype, device: torch.device) -> float:
    """How many times faster flash_attention is than the formula, forward and backward, at q, k and
    v of shape (B, nh, T, hs): below 1 where a CPU's kernel is tuned for other shapes and types."""
    times = {causal_attention: [], flash_attention: []}
    for _ in range(10):
        for attention, seconds in times.items():
            q, k, v = (
                torch.randn(shape, device=device, dtype=dtype).requires_grad_() for _ in "qkv"
            )
            work = lambda q=q, k=k, v=v, f=attention: f(q, k, v).sum().backward()  # noqa: E731
            seconds.append(timed(work, device)[0])
    # The fastest of each: other work on the machine slows some, and must not choose.
    return min(times[causal_attention]) / min(times[flash_attention])


class PeakMemory:
    """Bytes at the fullest from here on: of the GPU, or of this process, where Linux counts."""

    def __init__(self, device: torch.device):
        self.device = device
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)
        elif self._linux():
            Path("/proc/self/clear_refs").write_text("5")  # forget the highest so far

    def read(self) -> int | None:
        if self.device.type == "cuda":
            return torch.cuda.max_memory_allocated(self.device)
        if self._linux():
            status = Path("/proc/self/status").read_text()
            return int(status.split("VmHWM:")[1].split()[0]) * 1024
        return None

    def _linux(self) -> bool:
        return self.device.type == "cpu" and Path("/proc/self/clear_refs").exists()


@dataclass
class Row:
    """A line of the table. Ratios are of median times; `skipped` is a reason to have none."""

    name: str
    seconds: list[float] = field(default_factory=list)  # of each step that counts
    loss: float = 0.0  # before any step has changed a weight
    dtype: str = ""
    first_step: float = 0.0  # seconds, with the compilation where there is one
    peak_bytes: int | None = None  # memory at its fullest
    tokens_per_s: float = 0.0
    mfu: float = 0.0  # share of the measured matmul peak, 0 to 1
    times_previous: float | None = None
    times_first: float | None = None
    skipped: str | None = None

    @property
    def ms(self) -> float:
        return median(self.seconds) * 1000

    @property
    def spread(self) -> float:
        """Half the range over the median: 0.02 is ±2 %."""
        return (max(self.seconds) - min(self.seconds)) / 2 / median(self.seconds)


class Ladder:
    """The rows measured so far, printed as they come; the rates and ratios worked out from them.

    config and T say how many FLOPs a token takes, B · T how many tokens a step: the same for every
    row, so that work which a rung adds (padding) counts as time and not as work.
    """

    def __init__(self, config: GPTConfig, B: int, T: int, device: torch.device):
        self.tokens, self.flops = B * T, config.flops_per_token(T)
        self.device, self.rows, self.peaks = device, [], {}
        print(
            f"{'rung':<17}{'ms/step':>8}{'spread':>8}{'tokens/s':>9}"
            f"{'×prev':>7}{'×first':>7}{'MFU':>7}{'GB':>6}{'Δloss':>9}"
        )

    def skip(self, name: str, reason: str) -> None:
        self.rows.append(Row(name, skipped=reason))
        print(f"{name:<17} skipped: {reason}")

    def add(self, row: Row, previous: Row | None = None) -> Row:
        """Work out and print a row that was measured. Raises AssertionError if its loss is not that
        of the first row: a faster wrong number is no speed-up."""
        first = self.rows[0] if self.rows else None
        difference = row.loss - first.loss if first else 0.0
        if not abs(difference) <= MOST_LOSS_DIFFERENCE:  # nan too
            raise AssertionError(f"{row.name}: loss {row.loss:.4f}, but {first.loss:.4f} in fp32")
        row.tokens_per_s = self.tokens / median(row.seconds)
        row.mfu = self.flops * row.tokens_per_s / self.peak(getattr(torch, row.dtype))
        row.times_previous = previous and previous.ms / row.ms
        row.times_first = first.ms / row.ms if first else 1.0
        self.rows.append(row)
        gb = f"{row.peak_bytes / 1e9:.1f}" if row.peak_bytes else "–"
        times_previous = f"{row.times_previous:.2f}" if row.times_previous else "–"
        print(
            f"{row.name:<17}{row.ms:>8.1f}{f'±{row.spread:.1%}':>8}{row.tokens_per_s:>9,.0f}"
            f"{times_previous:>7}{row.times_first:>7.2f}{row.mfu:>7.1%}{gb:>6}{difference:>+9.4f}"
        )
        return row

    def why_not_believe(self) -> str | None:
        """What shows that the machine had other work meanwhile, None if nothing does. The last row
        is the first one measured again."""
        first, *_, last = (row for row in self.rows if row.seconds)
        most = max(row.mfu for row in self.rows)
        if most > 1:
            return f"a row is at {most:.0%} of the peak"
        drift = last.ms / first.ms
        if not 1 - MOST_DRIFT < drift < 1 + MOST_DRIFT:
            return f"the same work takes {drift:.2f} of the time"
        return None

    def peak(self, dtype: torch.dtype) -> float:
        """matmul_peak in dtype, at the matmul precision now in force, measured once."""
        kind = (dtype, torch.get_float32_matmul_precision())
        if kind not in self.peaks:
            self.peaks[kind] = matmul_peak(self.device, dtype)
        return self.peaks[kind]


def draw_ladder(path: Path, rows: list[Row], title: str) -> None:
    """A bar a row, as long as its step takes, with its speed as a multiple of the first's."""
    rows = [row for row in rows if row.seconds]
    figure = Figure(figsize=(8, 0.45 * len(rows) + 1.4), layout="constrained")
    axes = figure.subplots()
    colors = ["tab:blue" if row.name[0].isdigit() else "tab:orange" for row in rows]
    bars = axes.barh([row.name for row in rows], [row.ms for row in rows], color=colors)
    axes.bar_label(bars, [f" {row.times_first:.2f}×, MFU {row.mfu:.0%}" for row in rows])
    axes.invert_yaxis()
    axes.margins(x=0.3)
    axes.set(xlabel="ms a step (median)", title=title)
    save_picture(figure, path)
