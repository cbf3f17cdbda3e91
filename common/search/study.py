"""A search in phases: many trials are trained for a few steps, the best of them for more, and so
on. A trial that is promoted resumes from its checkpoint: no step is trained twice.

Optuna keeps the trials and their losses in study.db, a study a phase, and samples those of the
first. Several processes may work on one folder: each takes its trials under a lock, and a trial
whose process has died is free again.
"""

import contextlib
import shutil
import warnings
from pathlib import Path

import optuna
from optuna.distributions import CategoricalDistribution
from optuna.exceptions import StorageInternalError
from optuna.trial import FrozenTrial, TrialState
from sqlalchemy.exc import SQLAlchemyError

from common.kit.disk import lock
from common.search.phases import Phase, steps_of
from common.search.sampling import sample
from common.search.trial import Trial

STORAGE_ERRORS = (StorageInternalError, SQLAlchemyError)  # study.db is damaged, or the disk full
MAX_DEATHS = 3  # of processes in a row that trained a trial, before it counts as failed


class Search:
    """The state of a search, in a folder that processes share. Space: the values of each
    hyper-parameter; sampler: grid, random or tpe."""

    def __init__(
        self, folder: Path, phases: list[Phase], space: dict[str, tuple], sampler: str, seed: int
    ):
        self.folder, self.phases, self.space = folder, phases, space
        self.sampler, self.seed = sampler, seed
        self.distributions = {name: CategoricalDistribution(v) for name, v in space.items()}
        optuna.logging.set_verbosity(optuna.logging.ERROR)
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        warnings.filterwarnings("ignore", "The reported value is ignored")  # after a resume
        with self.locked():
            storage = optuna.storages.get_storage(f"sqlite:///{folder / 'study.db'}")
            names = [f"phase {k + 1}" for k in range(len(phases))]
            how = {"storage": storage, "load_if_exists": True}
            self.studies = [optuna.create_study(study_name=name, **how) for name in names]

    @contextlib.contextmanager
    def locked(self):
        """Within the block, no other process writes into the folder."""
        held = lock(self.folder / ".lock", wait=True)
        try:
            yield
        finally:
            held.release()

    def trials(self, k: int) -> list[FrozenTrial]:
        """The trials of a phase, without samples that repeated others or were cut off."""
        trials = self.studies[k].get_trials(deepcopy=False)
        return [trial for trial in trials if "number" in trial.user_attrs]

    def complete(self, k: int) -> list[FrozenTrial]:
        """A phase's trials that came to its end, best first."""
        done = [trial for trial in self.trials(k) if trial.state == TrialState.COMPLETE]
        return sorted(done, key=lambda trial: trial.value)

    def latest(self) -> dict[int, FrozenTrial]:
        """Each trial by its number, in the last phase that it came to the end of, or failed in."""
        return {
            trial.user_attrs["number"]: trial
            for k in range(len(self.phases))
            for trial in self.trials(k)
            if trial.state.is_finished()
        }

    def steps_done(self) -> int:
        """Of all trials that came to the end of a phase, or failed in it."""
        added = enumerate(steps_of(self.phases))
        return sum(steps * sum(t.state.is_finished() for t in self.trials(k)) for k, steps in added)

    def size(self, k: int) -> int:
        """How many trials a phase has, once the one before is over."""
        n = self.phases[k].trials
        return min(n, len(self.complete(k - 1))) if k else n

    def phase(self) -> int | None:
        """The phase under way; None if all are over."""
        for k in range(len(self.phases)):
            trials = self.trials(k)
            if len(trials) < self.size(k) or not all(t.state.is_finished() for t in trials):
                return k
        return None

    def take(self) -> Trial | None:
        """The next trial to train. None if other processes train all that are left, or none is:
        see `phase`."""
        with self.locked():
            k = self.phase()
            if k is None:
                return None
            trials = self.trials(k)
            for trial in trials:  # being trained, or left by a process that died
                if trial.state == TrialState.RUNNING:
                    if found := self._take(k, optuna.Trial(self.studies[k], trial._trial_id)):
                        return found
            if any(trial.state == TrialState.WAITING for trial in trials):  # a kill left it so
                return self._take(k, self.studies[k].ask(self.distributions))
            if len(trials) < self.size(k):
                return self._take(k, self._promote(k) if k else sample(self))
        return None

    def _take(self, k: int, asked: optuna.Trial) -> Trial | None:
        """A trial for this process. None if another process trains it, or if all that did have
        died, as a process does that takes too much memory: then it has failed."""
        number, deaths = asked.user_attrs["number"], asked.user_attrs.get("deaths", -1) + 1
        folder = self.folder_of(number)
        folder.mkdir(parents=True, exist_ok=True)
        held = lock(folder / ".lock")
        if held is None:
            return None
        # A kill while the trial was asked for may have left some of its values open.
        values = {name: asked.suggest_categorical(name, choices.choices)
                  for name, choices in self.distributions.items()}  # fmt: skip
        last = self.phases[k].steps
        first = last - steps_of(self.phases)[k]
        trial = Trial(k, number, values, first, last, folder, held, asked)
        if deaths == MAX_DEATHS:
            self._tell(trial, f"{deaths} processes died of it")
            return None
        asked.set_user_attr("deaths", deaths)
        return trial

    def folder_of(self, number: int) -> Path:
        return self.folder / "trials" / f"{number:04d}"

    def alive(self, trial: Trial) -> None:
        """Note that a trial's process came this far: what ends it now is not the trial. Report its
        validation loss, for Optuna's dashboard."""
        with self.locked():
            trial.asked.set_user_attr("deaths", -1)
            if trial.curve:
                step, _, val_loss = trial.curve[-1]
                trial.asked.report(val_loss, step)

    def tell(self, trial: Trial, reason: str | None = None) -> None:
        """Note how a trial ended: with the last loss of its curve, or failed for a reason. It is
        free then. What can't be promoted loses its checkpoint, which is as large as its model."""
        with self.locked():
            self._tell(trial, reason)
            if trial.phase + 1 < len(self.phases):
                self._remove_losers(trial.phase)

    def _tell(self, trial: Trial, reason: str | None) -> None:
        facts = {"step": trial.step, "seconds": trial.seconds, "curve": trial.curve}
        for name, value in (facts | ({"reason": reason} if reason else {})).items():
            trial.asked.set_user_attr(name, value)
        if reason:
            self.studies[trial.phase].tell(trial.asked, state=TrialState.FAIL)
        else:
            self.studies[trial.phase].tell(trial.asked, trial.curve[-1][2])
        trial.lock.release()

    def ask(self, k: int, values: dict, number: int) -> optuna.Trial:
        """A trial of phase k with these values."""
        self.studies[k].enqueue_trial(values, {"number": number})
        return self.studies[k].ask(self.distributions)

    def _promote(self, k: int) -> optuna.Trial:
        """The best of the phase before that is not in phase k yet."""
        self._remove_losers(k - 1)  # a kill may have left some
        there = {trial.user_attrs["number"] for trial in self.trials(k)}
        trial = next(t for t in self.complete(k - 1) if t.user_attrs["number"] not in there)
        return self.ask(k, trial.params, trial.user_attrs["number"])

    def _remove_losers(self, k: int) -> None:
        """Remove the checkpoints of trials that are not among phase k's best, and never will be."""
        best = self.complete(k)[: self.phases[k + 1].trials]
        done = {t.user_attrs["number"] for t in self.trials(k) if t.state.is_finished()}
        for number in done - {trial.user_attrs["number"] for trial in best}:
            shutil.rmtree(self.folder_of(number) / "checkpoints", ignore_errors=True)
