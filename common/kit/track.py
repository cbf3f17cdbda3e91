"""A RunLog whose numbers also go to a tracker, through its own package: --track tensorboard, wandb
or trackio.

The tracker's run is named after the run's folder. The file tracked_as.txt in the folder has the
name, so a resumed run continues the same tracker run.
"""

import importlib
import secrets
from dataclasses import asdict
from pathlib import Path

from common.kit.cli import UserError
from common.kit.disk import write_text
from common.kit.runlog import RunLog


class TrackedLog(RunLog):
    """options.track names the tracker, which also gets all options. A run that is resumed at step
    `first` continues the tracker's run. Raises UserError if the tracker can't be reached."""

    def __init__(self, folder: Path | None, columns, steps: int, options, first: int = 0):
        super().__init__(folder, columns, steps)
        is_tracked = folder and options.track != "no"
        self.tracker = open_tracker(folder, options, first) if is_tracked else None

    def write(self, values: dict) -> None:
        super().write(values)
        if self.tracker:
            numbers = {name: value for name, value in values.items() if name != "step"}
            self.tracker.log(numbers, step=values["step"])

    def __exit__(self, *_):
        super().__exit__()
        if self.tracker:
            self.tracker.finish()


def open_tracker(folder: Path, options, first: int):
    """A run of the tracker, with the methods log(numbers, step) and finish()."""
    track, file = options.track, folder / "tracked_as.txt"
    if not (first and file.exists()):
        write_text(file, f"{folder.resolve().name}-{secrets.token_hex(4)}")
    name = file.read_text()
    if track == "tensorboard":
        return TensorBoard(folder / "tensorboard" / name, first)
    how = {"project": "gpt2", "name": name, "resume": "allow", "config": asdict(options)}
    if track == "wandb":
        how |= {"id": name, "dir": folder}
    try:
        return importlib.import_module(track).init(**how)
    except Exception as error:  # each tracker has its own exceptions
        hint = "; WANDB_MODE=offline needs no network" if track == "wandb" else ""
        raise UserError(f"--track {track}: {error}".rstrip(".") + hint) from None


class TensorBoard:
    """TensorBoard's event file. In a resumed run, it hides the steps that are trained again."""

    def __init__(self, folder: Path, first: int):
        from torch.utils.tensorboard import SummaryWriter  # imports the package, if it is there

        self.writer = SummaryWriter(folder, purge_step=first or None)

    def log(self, numbers: dict, step: int) -> None:
        for name, number in numbers.items():
            self.writer.add_scalar(name, number, step)

    def finish(self) -> None:
        self.writer.close()
