"""The record of a run: one printed line per step, metrics.csv, and a plot of it, metrics.png."""

import csv
import math
from pathlib import Path

import numpy as np

from common.kit.cli import UserError, duration
from common.kit.disk import locked

# How a value looks in the printed line. Columns not listed here are only written to the file.
PRINTED = {
    "step": "step {:>4}",
    "loss": "loss {:7.4f}",
    "lr": "lr {:.1e}",
    "norm": "norm {:.2f}",
    "ms": "{:>4.0f} ms",
    "tokens_per_s": "{:>7,.0f} tok/s",
    "mfu": "MFU {:.0%}",
}
# Columns with a small plot of their own, and its title.
PANELS = {"lr": "learning rate", "norm": "gradient norm", "ms": "ms per step"}


class RunLog:
    """Write each row to metrics.csv at once, so that an interrupted run loses none, and plot the
    file when the `with` block ends, even by Ctrl-C.

    steps is the number of steps to come, used to estimate the time left. A log may hold several
    training runs: set `log.curve` to a name before each, and give a column "curve". Raises
    UserError for a folder in use, or with a run of stage 7.
    """

    def __init__(self, folder: Path, columns: tuple[str, ...], steps: int):
        self.folder, self.columns, self.left = folder, columns, steps
        self.curve, self.first = "training", None
        self.file = self.open()
        self.writer = csv.DictWriter(self.file, columns, extrasaction="ignore")
        if self.file.tell() == 0:
            self.writer.writeheader()
            self.file.flush()

    def open(self):
        if (self.folder / "config.json").exists():  # only stage 7 writes it, and resumes its log
            raise UserError(f"{self.folder} holds a run of stage 7: give another --out")
        self.lock = locked(self.folder)  # as long as this log lives
        (self.folder / "metrics.png").unlink(missing_ok=True)  # it would show another run
        return (self.folder / "metrics.csv").open("w", newline="")

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.file.close()
        self.plot()
        plotted = " and metrics.png" if (self.folder / "metrics.png").exists() else ""
        print(f"saved: {self.folder}/metrics.csv{plotted}")

    def row(self, step: int, **values) -> None:
        """Write and print the numbers of one training step."""
        values = {"step": step} | values
        self.write(values)
        print("  ".join(PRINTED[k].format(v) for k, v in values.items() if k in PRINTED))
        self.first = step if self.first is None else self.first
        self.left -= 1
        if step - self.first in (4, 49) and self.left > 0:  # the first steps' warm-up is over
            print(f"about {duration(self.left * values['ms'] / 1000)} to go")

    def val(self, step: int, val_loss: float, **values) -> None:
        """Write the validation loss before training step `step`."""
        self.write({"step": step, "val_loss": val_loss} | values)

    def write(self, values: dict) -> None:
        self.writer.writerow({"curve": self.curve} | values)
        self.file.flush()

    def rows(self) -> list[dict[str, str]]:
        """All rows of metrics.csv, by column; missing values are empty."""
        with (self.folder / "metrics.csv").open(newline="") as file:
            return list(csv.DictReader(file))

    def plot(self) -> None:
        """Plot metrics.png again, if there are two points or more."""
        rows = self.rows()
        if sum(bool(row.get("loss")) for row in rows) > 1:
            plot_run(rows).savefig(self.folder / "metrics.png", dpi=130)


def plot_run(rows: list[dict[str, str]]):
    """A figure of the rows of a metrics.csv: each curve's training and validation loss, and below
    them the PANELS of a run with a learning-rate schedule."""
    from matplotlib.figure import Figure  # half a second to import
    from matplotlib.ticker import MaxNLocator

    panels = PANELS if "lr" in rows[0] else {}
    figure = Figure(figsize=(8, 4.5 + 1.5 * len(panels)), layout="constrained")
    axes, *others = figure.subplots(
        1 + len(panels), sharex=True, squeeze=False, height_ratios=[3] + [1] * len(panels)
    ).flat
    names = list(dict.fromkeys(row.get("curve", "training") for row in rows))
    for k, name in enumerate(names):
        mine = [row for row in rows if row.get("curve", "training") == name]
        # Each curve is thinner than the one before, so curves that coincide stay visible.
        width = 1.5 + 1.5 * (len(names) - 1 - k)
        (line,) = axes.plot(*points_of(mine, "loss"), label=name, linewidth=width)
        x, y = points_of(mine, "val_loss")
        if x:
            label = f"{name}, validation" if len(names) > 1 else "validation"
            dots = {"markersize": 5 + width, "markeredgecolor": "white", "zorder": 3}
            axes.plot(x, y, "o--", color=line.get_color(), linewidth=0.8, label=label, **dots)
    axes.set(ylabel="loss (nats per token, log scale)", yscale="log")
    axes.yaxis.set_major_formatter("{x:g}")  # 6, not 6 × 10⁰
    axes.yaxis.set_minor_formatter("{x:g}")
    axes.legend()
    for panel, (column, title) in zip(others, panels.items(), strict=True):
        x, y = points_of(rows, column)
        panel.plot(x, y, linewidth=1, color="tab:green")
        y = [value for value in y if math.isfinite(value)] or [1.0]
        top = min(max(y), 2 * np.quantile(y, 0.95)) * 1.05  # a compiling step would flatten it
        panel.set(ylabel=title + ("\n(top cut)" if max(y) > top else ""), ylim=(0, top or None))
    for panel in (axes, *others):
        panel.grid(alpha=0.3, which="both")
    panel.set(xlabel="step")
    panel.xaxis.set_major_locator(MaxNLocator(integer=True, steps=[1, 2, 5, 10]))
    return figure


def points_of(rows: list[dict[str, str]], column: str) -> tuple[list[float], list[float]]:
    """Steps and values of a column."""
    found = [(float(row["step"]), float(row[column])) for row in rows if row.get(column)]
    return [step for step, _ in found], [value for _, value in found]
