"""What a run leaves behind: a printed line a step, metrics.csv, metrics.png."""

import csv
import os
from pathlib import Path

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter

from common.cli import UserError

# How a column looks in the printed line. Columns that are not here are only written to the file.
PRINTED = {
    "step": "step {:>4}",
    "loss": "loss {:8.4f}",
    "ms": "{:7.0f} ms",
    "tokens_per_s": "{:>9,.0f} tokens/s",
}


def run_folder(out: str) -> Path:
    """The folder `out`, made if it is not there. Raises UserError if it can't be."""
    folder = Path(out)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"--out {out} can't be made a folder: {error.strerror}") from None
    return folder


class RunLog:
    """Writes each row to metrics.csv at once, so that a run cut off leaves every row before it;
    on leaving the `with` block, even by Ctrl-C, draws the losses into metrics.png.

    `curve` is the title of the losses that follow: several training runs may share one log.
    """

    def __init__(self, folder: Path, *columns: str):
        self.folder, self.columns = folder, columns
        self.curves: dict[str, list[tuple[int, float]]] = {}
        self.points: dict[str, list[tuple[int, float]]] = {}
        (folder / "metrics.png").unlink(missing_ok=True)  # it would show another run
        self.file = (folder / "metrics.csv").open("w", newline="")
        self.writer = csv.DictWriter(self.file, columns)
        self._write({name: name for name in columns})

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.file.close()
        if any(len(points) > 1 for points in self.curves.values()):
            draw_losses(self.folder / "metrics.png", self.curves, self.points)
        print(f"kept: {self.folder}/metrics.csv and metrics.png")

    def row(self, curve: str = "training", **values) -> None:
        """Write and print one step's numbers; every column must have its value."""
        self.curves.setdefault(curve, []).append((values["step"], values["loss"]))
        self._write(values)
        print("  ".join(PRINTED[k].format(v) for k, v in values.items() if k in PRINTED))

    def held_out(self, step: int, loss: float, curve: str = "training") -> None:
        """Keep a held-out loss for the picture."""
        self.points.setdefault(curve, []).append((step, loss))

    def _write(self, row: dict) -> None:
        self.writer.writerow(row)
        self.file.flush()


def draw_losses(path: Path, curves: dict, held_out: dict) -> None:
    """A line for each training curve {title: [(step, loss), …]}, dots for its held-out losses."""
    figure = Figure(figsize=(8, 4.5), layout="constrained")
    axes = figure.subplots()
    for title, points in curves.items():
        (line,) = axes.plot(*zip(*points, strict=True), label=title, linewidth=1.5)
        if title in held_out:
            axes.plot(
                *zip(*held_out[title], strict=True), "o--", color=line.get_color(), markersize=7,
                linewidth=0.8, label=f"{title}, held out",
            )  # fmt: skip
    axes.set(xlabel="step", ylabel="loss (nats a token, log scale)", yscale="log")
    for axis in (axes.yaxis.set_major_formatter, axes.yaxis.set_minor_formatter):
        axis(FuncFormatter(lambda loss, _: f"{loss:g}"))  # 6, not 6 × 10⁰
    axes.grid(alpha=0.3, which="both")
    axes.legend()
    save_picture(figure, path)


def save_picture(figure: Figure, path: Path) -> None:
    """Write a PNG under its final name only when it is whole."""
    partial = path.with_suffix(".partial")
    FigureCanvasAgg(figure)
    figure.savefig(partial, format="png", dpi=130)
    os.replace(partial, path)
