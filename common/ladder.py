"""A ladder of speed-ups: its rows, measured one after the other, each compared with the first."""

import contextlib
import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import median

import torch

from common.kit.cli import is_out_of_memory
from common.kit.device import describe
from common.kit.measure import data_sheet_peak, matmul_peak, spread
from common.model import GPTConfig

WARMUP_STEPS = 2  # not timed: the first step may compile
MAX_LOSS_DIFFERENCE = 0.02  # nats, at the first step; bf16 has 8 bits of precision
MAX_DRIFT = 0.15  # the share by which the first rung's time may differ at the end


@dataclass
class Rung:
    """A row of the table, and the log of the run that measures it."""

    name: str
    dtype: str = "float32"  # of the matrix products
    ms: list[float] = field(default_factory=list)  # of every step, warm-up included
    loss: float | None = None  # of the first step: before any weight has changed
    val_loss: float | None = None  # after the last step
    peak_bytes: int | None = None  # peak memory
    tokens_per_s: float = 0.0
    mfu: float = 0.0  # share of the matmul peak, 0 to 1
    times_previous: float | None = None
    times_first: float | None = None

    def row(self, step: int, loss: float, ms: float, **_) -> None:
        self.loss = loss if step == 0 else self.loss
        self.ms.append(ms)

    def val(self, step: int, val_loss: float) -> None:
        self.val_loss = val_loss

    @property
    def timed(self) -> list[float]:
        return self.ms[WARMUP_STEPS:]

    @property
    def median_ms(self) -> float:
        return median(self.timed)

    @property
    def share(self) -> float:
        """The share of the machine's limit that is reached, 0 to 1."""
        return self.mfu


class Ladder:
    """The rungs measured so far, printed as they come, with throughput and ratios of median times.

    MFU counts the FLOPs of config in every row: padding costs time, but earns no FLOPs.
    """

    limit = "MFU"
    bar, bars, scale = "median_ms", "ms per step (median)", "linear"  # what the plot shows
    columns = f"{'MFU':>7}{'GB':>5}{'Δloss':>9}{'val':>7}"

    def __init__(self, config: GPTConfig, B: int, T: int, device: torch.device):
        self.tokens, self.flops = B * T, config.flops_per_token(T)
        self.begin(device)

    def begin(self, device: torch.device) -> None:
        """Print the header. `peaks` are the machine's limits, by name; `peak` adds to them."""
        self.device, self.peaks, self.rungs = device, {}, []
        shared = f"{'ms/step':>8}{'spread':>8}{'tokens/s':>9}{'×prev':>6}{'×first':>7}"
        print(f"{'rung':<14}{shared}{self.columns}")

    def skip(self, name: str, reason: str) -> None:
        print(f"{name:<14} skipped: {reason}")

    @contextlib.contextmanager
    def skip_if_full(self, name: str):
        """Skip the rung that is measured inside if memory does not hold it."""
        try:
            yield
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
            self.skip(name, "out of memory")

    def add(self, rung: Rung, previous: Rung | None = None) -> None:
        """Check a measured rung, compute its ratios, and print its row."""
        first = self.rungs[0] if self.rungs else rung
        own = self.check(rung, first)
        rung.times_previous = previous and rung.tokens_per_s / previous.tokens_per_s
        rung.times_first = rung.tokens_per_s / first.tokens_per_s
        self.rungs.append(rung)
        times_previous = f"{rung.times_previous:.2f}" if rung.times_previous else "–"
        print(
            f"{rung.name:<14}{rung.median_ms:>8.1f} {f'±{spread(rung.timed):.1%}':>7}"
            f"{rung.tokens_per_s:>9,.0f}{times_previous:>6}{rung.times_first:>7.2f}{own}"
        )

    def check(self, rung: Rung, first: Rung) -> str:
        """Compute a rung's throughput. Returns the cells of `columns`. Raises AssertionError if its
        first loss differs from the first rung's: a fast wrong number is no speed-up."""
        difference = rung.loss - first.loss
        if not abs(difference) <= MAX_LOSS_DIFFERENCE:  # nan too
            raise AssertionError(f"{rung.name}: loss {rung.loss:.4f}, but {first.loss:.4f} in fp32")
        rung.tokens_per_s = self.tokens / rung.median_ms * 1000
        rung.mfu = self.flops * rung.tokens_per_s / self.peak(getattr(torch, rung.dtype))
        gb = f"{rung.peak_bytes / 1e9:.1f}" if rung.peak_bytes else "–"
        return f"{rung.mfu:>7.1%}{gb:>5}{difference:>+9.4f}{rung.val_loss:>7.3f}"

    def add_last(self, again: Rung) -> None:
        """Add the first rung, measured again. Warn if the numbers suggest a busy machine."""
        self.add(again)
        drift = again.median_ms / self.rungs[0].median_ms
        print(f"{'':14} drift: {drift:.2f} of the first time")
        highest, busy = max(rung.share for rung in self.rungs), "unreliable, the machine was busy"
        if highest > 1:
            print(f"{busy}: a row is at {highest:.0%} of the peak")
        elif not 1 - MAX_DRIFT < drift < 1 + MAX_DRIFT:
            print(f"{busy}: the same work takes {drift:.2f} of the time")

    def peak(self, dtype: torch.dtype) -> float:
        """matmul_peak in dtype, with or without TF32, as set now. Measured and printed once."""
        kind = f"{dtype}, {torch.get_float32_matmul_precision()}"
        if kind not in self.peaks:
            peak = self.peaks[kind] = matmul_peak(self.device, dtype)
            sheet = data_sheet_peak(self.device) if dtype.itemsize == 2 else None
            share = f", {peak / sheet:.0%} of the data sheet's {sheet / 1e12:.0f}" if sheet else ""
            print(f"{'':14} the fastest product: {peak / 1e12:.3g} TFLOP/s{share}")
        return self.peaks[kind]

    @contextlib.contextmanager
    def saved(self, picture: Path, json_file: str | None, title: str):
        """When the block ends, even by Ctrl-C, plot what was measured, and write all numbers to
        json_file if asked to."""
        picture.unlink(missing_ok=True)  # from an earlier run
        title = f"{title}, {describe(self.device)}"
        try:
            yield
        finally:
            if self.rungs:
                plot_ladder(picture, self, title)
                print(f"saved: {picture}")
                if json_file:
                    rungs = [asdict(rung) for rung in self.rungs]
                    numbers = {"title": title, "peaks": self.peaks, "rungs": rungs}
                    text = json.dumps(numbers, indent=1) + "\n"
                    Path(json_file).expanduser().write_text(text)


def plot_ladder(path: Path, ladder: Ladder, title: str) -> None:
    """One bar per rung: the ladder's `bars`."""
    from matplotlib.figure import Figure  # half a second to import

    rungs = ladder.rungs
    figure = Figure(figsize=(8, 0.45 * len(rungs) + 1.4), layout="constrained")
    axes = figure.subplots()
    colors = ["tab:blue" if rung.name[0].isdigit() else "tab:orange" for rung in rungs]
    bars = axes.barh([r.name for r in rungs], [getattr(r, ladder.bar) for r in rungs], color=colors)
    labels = [f" {r.times_first:.3g}×, {ladder.limit} {r.share:.0%}" for r in rungs]
    axes.bar_label(bars, labels)
    axes.invert_yaxis()
    axes.margins(x=0.5 if ladder.scale == "log" else 0.3)  # for the labels
    axes.set(xlabel=ladder.bars, xscale=ladder.scale)
    figure.suptitle(title)
    figure.savefig(path, dpi=130)
