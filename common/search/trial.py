"""A trial: one setting of hyper-parameters, trained up to the end of a phase, with a checkpoint."""

import contextlib
import shutil
from dataclasses import dataclass, field
from pathlib import Path

import optuna
import torch
from filelock import FileLock

from common.kit.cli import UserError
from common.run import checkpoint
from common.run.ranks import Ranks
from common.search.phases import Phase


class TrialFailed(Exception):
    """A trial can't be trained further. The message is the reason."""


@dataclass
class Trial:
    """A trial that this process has taken and trains to the end of a phase."""

    k: int  # which phase, counted from 0
    number: int  # counted from 0, the same in all phases
    values: dict  # its hyper-parameters, by name
    phase: Phase
    folder: Path
    lock: FileLock | None
    asked: optuna.Trial | None  # Optuna's own trial, which records the result
    step: int = 0  # steps trained, in all phases
    seconds: float = 0.0  # how long these steps took
    curve: list[tuple] = field(default_factory=list)  # of (step, seconds, validation loss)

    def save(self, model, optimizer, scaler, batches, device: torch.device) -> None:
        """Write a checkpoint, in place of the one before."""
        state = {"step": self.step, "seconds": self.seconds, "curve": self.curve}
        texts = {"state": state, "config": self.values}
        checkpoint.save(self.folder, texts, model, optimizer, scaler, batches, 1, Ranks(device))

    def restore(self, model, optimizer, scaler, batches, device: torch.device) -> None:
        """Resume from its checkpoint, if there is one. A checkpoint that is damaged, or left by
        another search, is removed: the trial starts over."""
        folder = self.folder / "checkpoints"
        with contextlib.suppress(UserError):  # newest has printed what is damaged
            path = checkpoint.newest(folder)
            saved = path and checkpoint.read(path)
            state = saved["state"] if saved and saved["config"] == self.values else None
            if state and state["step"] <= self.phase.last:
                checkpoint.resume(path, state, model, optimizer, scaler, batches, Ranks(device))
                self.step, self.seconds = state["step"], state["seconds"]
                self.curve = state["curve"]
                return
        shutil.rmtree(folder, ignore_errors=True)
