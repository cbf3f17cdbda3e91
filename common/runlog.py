"""What a run leaves behind: a printed line a step, metrics.csv, metrics.png."""

import csv
import math
import os
from pathlib import Path

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator

from common.cli import UserError

# How a column looks in the printed line. Columns that are not here are only written to the file.
PRINTED = {
    "step": "step {:>4}",
    "loss": "loss {:.4f}",
    "lr": "lr {:.1e}",
    "norm": "norm {:.2f}",
    "ms": "{:>4.0f} ms",
    "tokens_per_s": "{:>7,.0f} tok/s",
    "mfu": "MFU {:.0%}",
}
MOST_POINTS = 2000  # in a picture: more can't be told apart


def run_folder(out: str) -> Path:
    """The folder `out`, made if it is not there. Raises UserError if it can't be, or not be written
    into."""
    folder = Path(out).expanduser()
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"--out {out} can't be made a folder: {error.strerror}") from None
    if not os.access(folder, os.W_OK | os.X_OK):
        raise UserError(f"--out {out} can't be written into: give another folder")
    return folder


class RunLog:
    """Writes each row to metrics.csv at once, so that a run cut off leaves every row before it;
    on leaving the `with` block, even by Ctrl-C, draws metrics.png.

    `curve` is the title of the losses that follow: several training runs may share one log. The
    panels {column: title} are drawn beside the losses. A run that goes on from an earlier one gives
    the step it goes on from: its rows before that stay, those after are dropped. Without a folder
    (on ranks that do not write) nothing is kept.
    """

    def __init__(self, folder: Path | None, *columns: str, panels=None, resume_at: int = 0,
                 tensorboard: bool = False):  # fmt: skip
        self.folder, self.columns, self.titles = folder, columns, panels or {}
        self.curves: dict[str, list[tuple[int, float]]] = {}
        self.points: dict[str, list[tuple[int, float]]] = {}
        self.panels: dict[str, list[tuple[int, float]]] = {name: [] for name in self.titles}
        self.tensorboard = None
        if folder is None:
            return
        if tensorboard:  # a package that is not everybody's
            from torch.utils.tensorboard import SummaryWriter

            self.tensorboard = SummaryWriter(folder / "tensorboard", purge_step=resume_at)
        (folder / "metrics.png").unlink(missing_ok=True)  # it would show another run
        rows = self._rows_before(resume_at)
        partial = folder / "metrics.partial"
        self.file = partial.open("w", newline="")
        self.writer = csv.DictWriter(self.file, columns)
        self.writer.writeheader()
        self.writer.writerows(rows)
        self.file.flush()
        for row in rows:
            values = {name: float(text) for name, text in row.items() if text}
            if "loss" in values:
                self._keep("training", values)
            else:
                self.points.setdefault("training", []).append((values["step"], values["held_out"]))
        os.replace(partial, folder / "metrics.csv")  # and the open file with it

    def _rows_before(self, step: int) -> list[dict]:
        """The rows of an earlier run, as text; one that a kill cut short is none."""
        path = self.folder / "metrics.csv"
        if step == 0 or not path.exists():
            return []
        text = path.read_text(errors="replace").replace("\0", "")  # a crash may leave anything
        rows = csv.DictReader(text.splitlines())
        return [row for row in rows if tuple(row) == self.columns and _is_row(row, step)]

    def __enter__(self):
        return self

    def __exit__(self, *_):
        if self.folder is None:
            return
        self.file.close()
        if self.tensorboard:
            self.tensorboard.close()
        self.draw()
        picture = " and metrics.png" if (self.folder / "metrics.png").exists() else ""
        print(f"kept: {self.folder}/metrics.csv{picture}")

    def row(self, curve: str = "training", **values) -> None:
        """Write and print one step's numbers; every column must have its value."""
        self._keep(curve, values)
        self._write(values)
        print("  ".join(PRINTED[k].format(v) for k, v in values.items() if k in PRINTED))

    def held_out(self, step: int, loss: float, curve: str = "training", **values) -> None:
        """Keep a held-out loss for the picture, and where it has a column, in a row of its own."""
        self.points.setdefault(curve, []).append((step, loss))
        if "held_out" in self.columns:
            self._write({"step": step, "held_out": loss} | values)

    def sync(self) -> None:
        if self.folder:
            os.fsync(self.file.fileno())

    def draw(self) -> None:
        """Draw metrics.png anew, if there is a line to draw."""
        if self.folder and any(len(points) > 1 for points in self.curves.values()):
            panels = {title: self.panels[name] for name, title in self.titles.items()}
            draw_run(self.folder / "metrics.png", self.curves, self.points, panels)

    def _keep(self, curve: str, values: dict) -> None:
        self.curves.setdefault(curve, []).append((values["step"], values["loss"]))
        for name, points in self.panels.items():
            points.append((values["step"], values[name]))

    def _write(self, row: dict) -> None:
        if self.folder is None:
            return
        try:
            self.writer.writerow(row)
            self.file.flush()
        except OSError as error:
            raise UserError(f"{self.folder}/metrics.csv: {error.strerror}; make room") from None
        for name, value in row.items() if self.tensorboard else ():
            if name != "step":
                self.tensorboard.add_scalar(name, value, row["step"])


def _is_row(row: dict, before: int) -> bool:
    """Whether a row of metrics.csv, as text, is whole and of a step before the given one."""
    try:
        numbers = {name: float(text) for name, text in row.items() if text != ""}
    except (TypeError, ValueError):  # what is missing is None
        return False
    return numbers.get("step", before) < before and ("loss" in numbers or "held_out" in numbers)


def draw_run(path: Path, curves: dict, held_out: dict, panels: dict) -> None:
    """A line for each training curve {title: [(step, loss), …]}, dots for its held-out losses; a
    smaller picture for each of the panels {title: [(step, value), …]}."""
    figure = Figure(figsize=(8, 4.5 + 1.5 * len(panels)), layout="constrained")
    axes, *others = figure.subplots(
        1 + len(panels), sharex=True, squeeze=False, height_ratios=[3] + [1] * len(panels)
    ).flat
    for title, points in curves.items():
        points = _thinned(points)
        (line,) = axes.plot(*zip(*points, strict=True), label=title, linewidth=1.5)
        if title in held_out:
            axes.plot(
                *zip(*held_out[title], strict=True), "o--", color=line.get_color(), markersize=7,
                linewidth=0.8, label=f"{title}, held out" if len(curves) > 1 else "held out",
            )  # fmt: skip
    axes.set(ylabel="loss (nats a token, log scale)", yscale="log")
    for axis in (axes.yaxis.set_major_formatter, axes.yaxis.set_minor_formatter):
        axis(FuncFormatter(lambda loss, _: f"{loss:g}"))  # 6, not 6 × 10⁰
    axes.legend()
    for panel, (title, points) in zip(others, panels.items(), strict=True):
        panel.plot(*zip(*_thinned(points), strict=True), linewidth=1, color="tab:green")
        values = [value for _, value in points if math.isfinite(value)] or [1.0]
        # A step that compiles would press all others flat.
        top = min(max(values), 2 * np.quantile(values, 0.95)) * 1.05
        cut = "\n(top cut)" if max(values) > top else ""
        panel.set(ylabel=title + cut, ylim=(0, top or None))
    for panel in (axes, *others):
        panel.grid(alpha=0.3, which="both")
    panel.set(xlabel="step")
    panel.xaxis.set_major_locator(MaxNLocator(integer=True, steps=[1, 2, 5, 10]))
    save_picture(figure, path)


def _thinned(points: list) -> list:
    return points[:: -(-len(points) // MOST_POINTS)]


def save_picture(figure: Figure, path: Path) -> None:
    """Write a PNG under its final name only when it is whole."""
    partial = path.with_suffix(".partial")
    FigureCanvasAgg(figure)
    figure.savefig(partial, format="png", dpi=130)
    os.replace(partial, path)
