"""The TrackedLog of a long run: resumable, written by rank 0 alone, with MFU."""

import os
from pathlib import Path

from common.kit.disk import write_text
from common.kit.runlog import points_of
from common.kit.track import TrackedLog
from common.run import checkpoint


class LongRunLog(TrackedLog):
    """A run of `steps` steps that is resumed at step `first` keeps the rows of earlier steps and
    drops later ones. Without a folder, as on ranks other than 0, nothing is written.
    peak_tokens_per_s is the throughput at 100 % MFU."""

    def __init__(self, folder: Path | None, columns, steps, options, first, peak_tokens_per_s):
        self.first_step, self.peak_tokens_per_s = first, peak_tokens_per_s
        super().__init__(folder, columns, steps - first, options, first)

    def open(self):
        if self.folder is None:
            return open(os.devnull, "w")
        path, rows = self.folder / "metrics.csv", []
        if self.first_step and path.is_file():
            rows = path.read_text(errors="replace").splitlines()[1:]
        # A crash may have cut the last row.
        whole = [row for row in rows if row.count(",") == len(self.columns) - 1]
        kept = [row for row in whole if int(row.split(",")[0]) < self.first_step]
        write_text(path, "\n".join([",".join(self.columns), *kept, ""]))
        return path.open("a", newline="")

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

    def best_saved(self) -> Path | None:
        """The checkpoint with the lowest validation loss. None if no step that was evaluated has a
        checkpoint."""
        if self.folder is None:
            return None
        steps, losses = points_of(self.rows(), "val_loss")
        paths = [checkpoint.path_of(self.folder / "checkpoints", int(step)) for step in steps]
        found = [(loss, path) for loss, path in zip(losses, paths, strict=True) if path.exists()]
        return min(found)[1] if found else None

    def __exit__(self, *_):
        if self.folder:
            super().__exit__()
            steps, losses = points_of(self.rows(), "val_loss")
            lowest, step = min(zip(losses, steps, strict=True), default=(0, 0))
            if losses and lowest < losses[-1]:  # a model that overfits, for example
                print(f"the lowest validation loss was {lowest:.4f}, at step {step:.0f}")
                if best := self.best_saved():
                    print(f"the best checkpoint is {best}")
