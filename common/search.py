"""A search in phases: many settings are trained for a few steps, the best of them for more, and so
on. A setting that goes on keeps its checkpoint: no phase is trained twice.

Optuna keeps the settings and what came of them in study.db, a study a phase, and chooses the first
ones. Several processes may work on one folder: what is whose is settled under a lock, and a setting
whose process has died is free again.
"""

import itertools
import math
import random
import shutil
import warnings
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO

import optuna
from optuna.trial import FrozenTrial, Trial, TrialState

from common.cli import UserError
from common.disk import lock
from common.phases import Phase

WARMUP_STEPS = 10
TRIES = 20  # draws of a sampler that may repeat itself; then the next of the grid is taken


@dataclass
class Claim:
    """A setting that this process trains, up to the end of a phase."""

    phase: int  # counted from 0
    trial: Trial
    number: int  # of the setting, counted from 0
    values: dict  # its hyper-parameters, by name
    folder: Path
    lock: TextIO


class Search:
    """The state of a search, in a folder that processes share."""

    def __init__(self, folder: Path, phases: list[Phase], space: dict[str, tuple], sampler: str,
                 seed: int):  # fmt: skip
        """Space: the values of each hyper-parameter; sampler: grid, random or tpe."""
        self.folder, self.phases, self.space = folder, phases, space
        self.distributions = {
            name: optuna.distributions.CategoricalDistribution(values)
            for name, values in space.items()
        }
        optuna.logging.set_verbosity(optuna.logging.ERROR)
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        self.sampler, self.seed = sampler, seed
        with self.alone():
            self.studies = [
                optuna.create_study(
                    storage=f"sqlite:///{folder / 'study.db'}", study_name=f"phase {k + 1}",
                    load_if_exists=True,
                )
                for k in range(len(phases))
            ]  # fmt: skip

    @contextmanager
    def alone(self):
        """Within it, no other process writes into the folder."""
        held = lock(self.folder / ".lock", wait=True)
        try:
            yield
        finally:
            held.close()

    def claim(self) -> Claim | None:
        """The next setting to train; None if all that is left is in other hands, or nothing is: see
        `finished`. Raises UserError if every setting of a phase has failed."""
        with self.alone():
            for k in range(len(self.phases)):
                if k and "promoted" not in self.studies[k].user_attrs:
                    self._promote(k)
                trials = self.trials(k)
                for trial in trials:  # in other hands, or left by a process that died
                    if trial.state == TrialState.RUNNING:
                        found = self._take(k, Trial(self.studies[k], trial._trial_id))
                        if found:
                            return found
                if k == 0 and len(trials) < self.phases[0].settings:
                    return self._take(k, self._draw())
                if any(trial.state == TrialState.WAITING for trial in trials):
                    return self._take(k, self.studies[k].ask(self.distributions))
                if any(trial.state == TrialState.RUNNING for trial in trials):
                    return None
        return None

    @property
    def finished(self) -> bool:
        k = len(self.phases) - 1
        last, drawn = self.trials(k), k > 0 or len(self.trials(0)) >= self.phases[0].settings
        return drawn and bool(last) and all(trial.state.is_finished() for trial in last)

    def trials(self, k: int) -> list[FrozenTrial]:
        """The settings of a phase: without draws that repeated others, or were cut off."""
        trials = self.studies[k].get_trials(deepcopy=False)
        return [trial for trial in trials if "setting" in trial.user_attrs]

    def complete(self, k: int) -> list[FrozenTrial]:
        """A phase's settings that came to its end, best first."""
        done = [trial for trial in self.trials(k) if trial.state == TrialState.COMPLETE]
        return sorted(done, key=lambda trial: trial.value)

    def steps_done(self) -> int:
        """Of all settings that have come to the end of a phase, or failed in it."""
        befores = [0, *(phase.steps for phase in self.phases)]
        return sum(
            sum(trial.state.is_finished() for trial in self.trials(k)) * (phase.steps - before)
            for k, (phase, before) in enumerate(zip(self.phases, befores, strict=False))
        )

    def best(self) -> float:
        """The lowest held-out loss so far; infinity before there is one."""
        found = [trials[0].value for k in range(len(self.phases)) if (trials := self.complete(k))]
        return min(found, default=math.inf)

    def tell(self, claim: Claim, loss: float | None, **facts) -> None:
        """Note how a setting did, and give it free: its held-out loss, None if it failed."""
        with self.alone():
            for name, value in facts.items():
                claim.trial.set_user_attr(name, value)
            state = TrialState.FAIL if loss is None else TrialState.COMPLETE
            self.studies[claim.phase].tell(claim.trial, loss, state)
        claim.lock.close()

    def _draw(self) -> Trial:
        """A setting that was not there before, by the sampler if it finds one. It counts once it
        has its number; a draw that repeats another is told as failed: no sampler learns from it."""
        seen = [trial.params for trial in self.trials(0)]
        for _ in range(TRIES):
            draws = optuna.load_study(
                storage=self.studies[0]._storage, study_name="phase 1", sampler=self._new_sampler()
            )
            trial = draws.ask(self.distributions)
            if trial.params not in seen:
                trial.set_user_attr("setting", len(seen))
                return Trial(self.studies[0], trial._trial_id)
            self.studies[0].tell(trial.number, state=TrialState.FAIL)
        grid = itertools.product(*self.space.values())
        settings = (dict(zip(self.space, values, strict=True)) for values in grid)
        unseen = [setting for setting in settings if setting not in seen]
        chosen = random.Random(self.seed + len(seen)).choice(unseen)
        self.studies[0].enqueue_trial(chosen, {"setting": len(seen)})
        return self.studies[0].ask(self.distributions)

    def _new_sampler(self) -> optuna.samplers.BaseSampler:
        """The grid's knows what was drawn; the others get a seed for each draw, of any process."""
        if self.sampler == "grid":
            return optuna.samplers.GridSampler(self.space, self.seed)
        seed = self.seed + len(self.studies[0].get_trials(deepcopy=False))
        if self.sampler == "random":
            return optuna.samplers.RandomSampler(seed)
        return optuna.samplers.TPESampler(seed=seed, constant_liar=True)

    def _promote(self, k: int) -> None:
        """Let the best of the phase before go on; the checkpoints of the others go. A kill within
        leaves the rest to whoever comes next."""
        best, before = self.complete(k - 1)[: self.phases[k].settings], self.trials(k - 1)
        if not best:
            why = before[0].user_attrs["reason"]
            raise UserError(f"every setting of phase {k} failed, the first so: {why}")
        there = {trial.user_attrs["setting"] for trial in self.trials(k)}
        for trial in best:
            if trial.user_attrs["setting"] not in there:
                number = {"setting": trial.user_attrs["setting"]}
                self.studies[k].enqueue_trial(trial.params, number)
        kept = {trial.user_attrs["setting"] for trial in best}
        for number in {trial.user_attrs["setting"] for trial in before} - kept:
            shutil.rmtree(self.folder_of(number) / "checkpoints", ignore_errors=True)
        self.studies[k].set_user_attr("promoted", True)

    def folder_of(self, number: int) -> Path:
        return self.folder / "settings" / f"{number:04d}"

    def _take(self, k: int, trial: Trial) -> Claim | None:
        """This process's claim on a setting; None if another process has it."""
        number = trial.user_attrs["setting"]
        folder = self.folder_of(number)
        folder.mkdir(parents=True, exist_ok=True)
        held = lock(folder / ".lock")
        return held and Claim(k, trial, number, trial.params, folder, held)
