"""A search in phases: many trials are trained for a few steps, the best of them for more, and so
on. A promoted trial resumes from its checkpoint: no step is trained twice.

Optuna keeps the trials and their losses, one study per phase: a FrozenTrial is its record of a
trial, while a Trial (trial.py) is one that this process trains. Several processes may share one
folder: each takes its trials under a lock, and a trial whose process has died is free again.
"""

import json
import math
import shutil
import warnings
from pathlib import Path

import optuna
from filelock import FileLock
from optuna.trial import FrozenTrial, TrialState, create_trial

from common.kit.cli import UserError
from common.kit.disk import is_empty, lock, read_json, run_folder, write_json
from common.search.phases import Phase, distributions, new_values
from common.search.storage import open_studies
from common.search.trial import Trial


def open_search(options, phases: list[Phase], space: dict[str, tuple], text: str) -> "Search":
    """The search in --out, new or begun with these options. Raises UserError for other options."""
    size = math.prod(map(len, space.values()))
    if size < phases[0].trials:
        hint = "widen the space, or ask for fewer trials"
        raise UserError(f"--phases wants {phases[0].trials} trials, the space has {size}: {hint}")
    given = {name: list(values) for name, values in space.items()} | {"text": text}
    given |= {n: getattr(options, n) for n in ("phases", "sampler", "eval_tokens", "seed")}
    given["storage"] = bool(options.storage)  # not the URL, which may hold a password
    folder = run_folder(options.out)
    file = folder / "search.json"
    # In this order: another process may be beginning the same search.
    if not is_empty(folder) and not file.exists():
        raise UserError(f"{options.out} holds something else: give another --out")
    with FileLock(folder / ".lock"):
        if not file.exists():
            write_json(file, given)
    there = read_json(file)
    for name in sorted(given.keys() | there.keys()):
        if given.get(name) != there.get(name):
            old, new = json.dumps(there.get(name)), json.dumps(given.get(name))
            hint = "give that, or another --out"
            raise UserError(f"the search in {folder} has {name} {old}, not {new}: {hint}")
    return Search(folder, phases, space, options.sampler, options.seed, options.storage)


def number_of(trial: FrozenTrial) -> int:
    return trial.user_attrs["number"]  # not Optuna's number, which differs between phases


class Search:
    """The state of a search, in a folder that processes share: while one holds `lock`, no other
    writes. space: the values of each hyper-parameter; sampler: grid or tpe."""

    def __init__(
        self, folder: Path, phases: list[Phase], space: dict, sampler: str, seed: int, storage=None
    ):
        self.folder, self.phases, self.space = folder, phases, space
        self.sampler, self.seed = sampler, seed
        self.lock = FileLock(folder / ".lock")
        optuna.logging.set_verbosity(optuna.logging.ERROR)
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        warnings.filterwarnings("ignore", "The reported value is ignored")  # after a resume
        with self.lock:
            self.studies = open_studies(storage, folder, len(phases))

    def trials(self, k: int, *states: TrialState) -> list[FrozenTrial]:
        """A phase's trials in these states; by default, in any."""
        return self.studies[k].get_trials(deepcopy=False, states=states or None)

    def complete(self, k: int) -> list[FrozenTrial]:
        """A phase's completed trials, best first."""
        return sorted(self.trials(k, TrialState.COMPLETE), key=lambda trial: trial.value)

    def finished(self, k: int) -> list[FrozenTrial]:
        """A phase's trials that completed it or failed in it."""
        return self.trials(k, TrialState.COMPLETE, TrialState.FAIL)

    def latest(self) -> dict[int, FrozenTrial]:
        """Each trial by its number, as of the last phase that it completed or failed in."""
        ks = range(len(self.phases))
        return {number_of(trial): trial for k in ks for trial in self.finished(k)}

    def steps_done(self) -> int:
        """The steps of all completed and failed trials, in all phases."""
        return sum(p.steps * len(self.finished(k)) for k, p in enumerate(self.phases))

    def size(self, k: int) -> int:
        """How many trials a phase has, once the phase before is over."""
        n = self.phases[k].trials
        return min(n, len(self.complete(k - 1))) if k else n

    def phase(self) -> int | None:
        """The phase under way; None if all are over."""
        ks = range(len(self.phases))
        return next((k for k in ks if len(self.finished(k)) < self.size(k)), None)

    def take(self) -> Trial | None:
        """The next trial to train. None if other processes train all the rest, or if none is left:
        see `phase`."""
        with self.lock:
            k = self.phase()
            if k is None:
                return None
            for noted in self.trials(k, TrialState.RUNNING):
                if trial := self._take(k, noted):  # left by a process that died
                    return trial
            if len(self.trials(k)) < self.size(k):
                return self._take(k, self._add(k))
            return None

    def _add(self, k: int) -> FrozenTrial:
        """Add a new trial to phase k, in one transaction: a kill leaves all of it or nothing."""
        there = self.trials(k)
        if k == 0:
            number, values = len(there), new_values(self.space, self.sampler, self.seed, there)
        else:
            numbers = {number_of(trial) for trial in there}
            best = next(t for t in self.complete(k - 1) if number_of(t) not in numbers)
            number, values = number_of(best), best.params
        how = {"params": values, "distributions": distributions(self.space)}
        attrs = {"number": number}
        self.studies[k].add_trial(create_trial(state=TrialState.RUNNING, user_attrs=attrs, **how))
        return self.trials(k)[-1]

    def _take(self, k: int, noted: FrozenTrial) -> Trial | None:
        """Take a trial for this process. None if another process trains it."""
        folder = self.folder_of(noted)
        folder.mkdir(parents=True, exist_ok=True)
        held = lock(folder)
        if held is None:
            return None
        asked = optuna.Trial(self.studies[k], noted._trial_id)
        return Trial(k, number_of(noted), noted.params, self.phases[k], folder, held, asked)

    def folder_of(self, trial: FrozenTrial) -> Path:
        return self.folder / "trials" / f"{number_of(trial):04d}"

    def tell(self, trial: Trial, reason: str | None = None) -> None:
        """Record how a trial ended, with the last loss of its curve or failed for a reason, and
        release it. Trials that can't be promoted lose their checkpoints, which take much disk."""
        with self.lock:
            for name in ("step", "seconds", "curve"):
                trial.asked.set_user_attr(name, getattr(trial, name))
            trial.asked.set_user_attr("reason", reason)
            end = {"state": TrialState.FAIL} if reason else {"values": trial.curve[-1][2]}
            self.studies[trial.k].tell(trial.asked, **end)
            trial.lock.release()
            if trial.k + 1 == len(self.phases):
                return  # the last phase's trials keep them
            best = self.complete(trial.k)[: self.phases[trial.k + 1].trials]
            for ended in self.finished(trial.k):
                if ended not in best:
                    shutil.rmtree(self.folder_of(ended) / "checkpoints", ignore_errors=True)
