"""The RunLog of a long run: resumable, written by rank 0 alone, with MFU."""

import csv
import os
from pathlib import Path

from common.kit.runlog import RunLog


class LongRunLog(RunLog):
    """A run that is resumed at step `first` keeps the rows of earlier steps; later ones go. Without
    a folder, on ranks that do not write, nothing is written. peak_tokens_per_s is the throughput at
    100 % MFU."""

    def __init__(self, folder: Path | None, columns, steps: int, panels, first: int,
                 peak_tokens_per_s: float):  # fmt: skip
        self.first_step, self.peak_tokens_per_s = first, peak_tokens_per_s
        super().__init__(folder, columns, steps, panels)

    def open(self):
        if self.folder is None:
            return open(os.devnull, "w")
        path, partial = self.folder / "metrics.csv", self.folder / "metrics.partial"
        rows = self._rows_before(self.first_step) if self.first_step and path.is_file() else []
        with partial.open("w", newline="") as file:
            writer = csv.DictWriter(file, self.columns)
            writer.writeheader()
            writer.writerows(rows)
        os.replace(partial, path)
        return path.open("a", newline="")

    def _rows_before(self, step: int) -> list[dict]:
        """The rows of an earlier run, as text. A crash may have damaged the last ones."""
        text = (self.folder / "metrics.csv").read_text(errors="replace").replace("\0", "")
        rows = csv.DictReader(text.splitlines())
        return [row for row in rows if tuple(row) == self.columns and _is_row(row, step)]

    def row(self, step: int, tokens_per_s: float, **values) -> None:
        mfu = tokens_per_s / self.peak_tokens_per_s
        super().row(step, **values, tokens_per_s=tokens_per_s, mfu=mfu)

    def sync(self) -> None:
        """Wait until the rows are on the disk."""
        if self.folder:
            os.fsync(self.file.fileno())

    def plot(self) -> None:
        if self.folder:
            super().plot()

    def __exit__(self, *_):
        if self.folder:
            super().__exit__()


def _is_row(row: dict, before: int) -> bool:
    """Whether a row of metrics.csv, as text, is whole and of a step before the given one."""
    try:
        numbers = {name: float(text) for name, text in row.items() if text != ""}
    except (TypeError, ValueError):  # what is missing is None
        return False
    return numbers.get("step", before) < before and ("loss" in numbers or "val_loss" in numbers)
