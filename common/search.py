"""A search in phases: many settings are trained for a few steps, the best of them for more, and so
on. A setting that goes on keeps its checkpoint: no phase is trained twice.

Optuna keeps the settings and what came of them in study.db, a study a phase, and chooses the first
ones. Several processes may work on one folder: what is whose is settled under a lock, and a setting
whose process has died is free again.
"""

import math
import shutil
import warnings
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO

import optuna
from optuna.trial import FrozenTrial, Trial, TrialState

from common.disk import lock
from common.draw import distributions, draw
from common.phases import Phase

WARMUP_STEPS = 10
MOST_DEATHS = 3  # of processes in a row that had one setting, before it counts as failed


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
        self.distributions = distributions(space)
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
        `finished`."""
        with self.alone():
            for k in range(len(self.phases)):
                if k and not self._promoted(k):
                    self._promote(k)
                trials = self.trials(k)
                for trial in trials:  # in other hands, or left by a process that died
                    if trial.state == TrialState.RUNNING:
                        found = self._take(k, Trial(self.studies[k], trial._trial_id))
                        if found:
                            return found
                if any(trial.state == TrialState.WAITING for trial in trials):
                    return self._take(k, self.studies[k].ask(self.distributions))
                if k == 0 and len(trials) < self.phases[0].settings:
                    how = (self.space, self.sampler, self.seed)
                    seen = [trial.params for trial in trials]
                    return self._take(k, draw(self.studies[0], *how, seen))
                if any(trial.state == TrialState.RUNNING for trial in trials):
                    return None
        return None

    @property
    def finished(self) -> bool:
        """Whether nothing is left to train: each phase is at its end, or had none that go on."""
        for k in range(len(self.phases)):
            trials = self.trials(k)
            if k and not self._promoted(k):
                return not self.complete(k - 1)
            if k == 0 and len(trials) < self.phases[0].settings:
                return False
            if not all(trial.state.is_finished() for trial in trials):
                return False
        return True

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
        """Note how a setting did, and give it free: its held-out loss, None if it failed. What can
        no longer go on loses its checkpoints: they are as large as models are."""
        with self.alone():
            self._tell(claim.phase, claim.trial, loss, facts)
            if claim.phase + 1 < len(self.phases):
                self._forget_losers(claim.phase)
        claim.lock.close()

    def _tell(self, k: int, trial: Trial, loss: float | None, facts: dict) -> None:
        for name, value in facts.items():
            trial.set_user_attr(name, value)
        self.studies[k].tell(trial, loss, TrialState.FAIL if loss is None else TrialState.COMPLETE)

    def lives(self, claim: Claim) -> None:
        """Note that a setting's process came this far: what ends it now is not the setting."""
        with self.alone():
            claim.trial.set_user_attr("deaths", -1)

    def _promoted(self, k: int) -> bool:
        return "promoted" in self.studies[k].user_attrs

    def _promote(self, k: int) -> None:
        """Let the best of the phase before go on. A kill within leaves the rest to whoever comes
        next."""
        best = self.complete(k - 1)[: self.phases[k].settings]
        if not best:
            return  # all have failed: the search ends here
        there = {trial.user_attrs["setting"] for trial in self.trials(k)}
        for trial in best:
            if trial.user_attrs["setting"] not in there:
                number = {"setting": trial.user_attrs["setting"]}
                self.studies[k].enqueue_trial(trial.params, number)
        self._forget_losers(k - 1)
        self.studies[k].set_user_attr("promoted", True)

    def _forget_losers(self, k: int) -> None:
        """Remove the checkpoints of settings that are not among phase k's best, and never will."""
        best = self.complete(k)[: self.phases[k + 1].settings]
        done = {t.user_attrs["setting"] for t in self.trials(k) if t.state.is_finished()}
        for number in done - {trial.user_attrs["setting"] for trial in best}:
            shutil.rmtree(self.folder_of(number) / "checkpoints", ignore_errors=True)

    def folder_of(self, number: int) -> Path:
        return self.folder / "settings" / f"{number:04d}"

    def _take(self, k: int, trial: Trial) -> Claim | None:
        """This process's claim on a setting; None if another process has it, or if it has ended all
        that had it, as a system does that is out of memory: it has failed now."""
        number, deaths = trial.user_attrs["setting"], trial.user_attrs.get("deaths", -1) + 1
        folder = self.folder_of(number)
        folder.mkdir(parents=True, exist_ok=True)
        held = lock(folder / ".lock")
        if held is None:
            return None
        # A kill while it was asked for may have left it without some.
        values = {name: trial.suggest_categorical(name, choices.choices)
                  for name, choices in self.distributions.items()}  # fmt: skip
        if deaths == MOST_DEATHS:
            self._tell(k, trial, None, {"reason": f"{deaths} processes died of it"})
            held.close()
            return None
        trial.set_user_attr("deaths", deaths)
        return Claim(k, trial, number, values, folder, held)
