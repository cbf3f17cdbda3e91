"""A search in phases: many trials are trained for a few steps, the best of them for more, and so
on. A trial that is promoted resumes from its checkpoint: no step is trained twice.

Optuna keeps the trials and their losses in study.db, a study a phase, and samples those of the
first. Several processes may work on one folder: each takes its trials under a lock, and a trial
whose process has died is free again.
"""

import contextlib
import itertools
import json
import math
import random
import shutil
import warnings
from dataclasses import dataclass, field
from pathlib import Path

import optuna
import torch
from filelock import FileLock
from optuna.distributions import CategoricalDistribution
from optuna.exceptions import StorageInternalError
from optuna.trial import FrozenTrial, TrialState
from sqlalchemy.exc import SQLAlchemyError

from common.kit.cli import UserError
from common.kit.disk import check_room, lock, run_folder, write_json
from common.run import checkpoint
from common.run.ranks import Ranks
from common.run.resume import BYTES_IN_CHECKPOINT, restore_state
from common.search.phases import Phase, largest, steps_of

STORAGE_ERRORS = (StorageInternalError, SQLAlchemyError)  # study.db is damaged, or the disk full
MAX_DEATHS = 3  # of processes in a row that trained a trial, before it counts as failed
MAX_REPEATS = 20  # of trials that were tried before, by a sampler; then one of the rest is taken


class TrialFailed(Exception):
    """A trial can't be trained further. Its text is the reason."""


@dataclass
class Trial:
    """A trial that this process has taken, to train it up to the end of a phase."""

    phase: int  # counted from 0
    number: int  # counted from 0, the same in all phases
    values: dict  # its hyper-parameters, by name
    first: int  # the step at which the phase begins,
    last: int  # and ends
    folder: Path
    lock: FileLock | None
    asked: optuna.Trial | None  # Optuna's own, which notes what becomes of it
    step: int = 0  # steps trained, in all phases,
    seconds: float = 0.0  # and how long they took
    curve: list[tuple] = field(default_factory=list)  # of (step, seconds, validation loss)

    def save(self, model, optimizer, scaler, batches, device: torch.device) -> None:
        """Write a checkpoint, in place of the one before."""
        state = {"step": self.step, "seconds": self.seconds, "curve": self.curve,
                 "data": batches.state(), "scaler": scaler.state_dict()}  # fmt: skip
        texts = {"state": state, "config": self.values}
        checkpoint.save(self.folder, texts, model, optimizer, 1, Ranks(device))

    def restore(self, model, optimizer, scaler, batches, device: torch.device) -> None:
        """Resume from its checkpoint, if there is one. One that is damaged, or that another search
        left, is removed: the trial starts again."""
        folder = self.folder / "checkpoints"
        with contextlib.suppress(UserError):  # newest has printed what is damaged
            path = checkpoint.newest(folder)
            saved = path and checkpoint.read(path)
            if saved and saved["config"] == self.values and saved["state"]["step"] <= self.last:
                state = saved["state"]
                restore_state(path, state, model, optimizer, scaler, batches, Ranks(device))
                self.step, self.seconds = state["step"], state["seconds"]
                self.curve = state["curve"]
                return
        shutil.rmtree(folder, ignore_errors=True)


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
                return self._take(k, self._promote(k) if k else self._sample())
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

    def _ask(self, k: int, values: dict, number: int) -> optuna.Trial:
        """A trial of phase k with these values."""
        self.studies[k].enqueue_trial(values, {"number": number})
        return self.studies[k].ask(self.distributions)

    def _promote(self, k: int) -> optuna.Trial:
        """The best of the phase before that is not in phase k yet."""
        self._remove_losers(k - 1)  # a kill may have left some
        there = {trial.user_attrs["number"] for trial in self.trials(k)}
        trial = next(t for t in self.complete(k - 1) if t.user_attrs["number"] not in there)
        return self._ask(k, trial.params, trial.user_attrs["number"])

    def _remove_losers(self, k: int) -> None:
        """Remove the checkpoints of trials that are not among phase k's best, and never will be."""
        best = self.complete(k)[: self.phases[k + 1].trials]
        done = {t.user_attrs["number"] for t in self.trials(k) if t.state.is_finished()}
        for number in done - {trial.user_attrs["number"] for trial in best}:
            shutil.rmtree(self.folder_of(number) / "checkpoints", ignore_errors=True)

    def _sample(self) -> optuna.Trial:
        """A trial that was not tried before, by the sampler if it finds one. It counts once it has
        its number. A sample that repeats another fails, and no sampler learns from it."""
        study, seen = self.studies[0], [trial.params for trial in self.trials(0)]
        usual = study.sampler
        for _ in range(MAX_REPEATS):
            study.sampler = self._new_sampler()
            asked = study.ask(self.distributions)
            study.sampler = usual  # told of a trial, the grid's would want to stop a loop
            if asked.params not in seen:
                asked.set_user_attr("number", len(seen))
                return asked
            study.tell(asked, state=TrialState.FAIL)
        products = itertools.product(*self.space.values())
        whole = (dict(zip(self.space, values, strict=True)) for values in products)
        unseen = [values for values in whole if values not in seen]
        chosen = random.Random(self.seed + len(seen)).choice(unseen)
        return self._ask(0, chosen, len(seen))

    def _new_sampler(self):
        """The grid's knows what was sampled; the others get a seed for each sample, of any
        process."""
        if self.sampler == "grid":
            return optuna.samplers.GridSampler(self.space, self.seed % 2**32)
        seed = (self.seed + len(self.studies[0].get_trials(deepcopy=False))) % 2**32
        if self.sampler == "random":
            return optuna.samplers.RandomSampler(seed)
        return optuna.samplers.TPESampler(seed=seed, constant_liar=True)


def open_search(options, phases: list[Phase], space: dict[str, tuple], text: str) -> Search:
    """The search in --out, new or begun with the same options. Raises UserError for another."""
    size = math.prod(map(len, space.values()))
    if size < phases[0].trials:
        raise UserError(f"--phases wants {phases[0].trials} trials, and the space has {size}: "
                        "widen it, or ask for fewer")  # fmt: skip
    names = ("phases", "sampler", "eval_tokens", "seed")
    given = space | {name: getattr(options, name) for name in names} | {"text": text}
    given = json.loads(json.dumps(given))  # tuples become lists, as in the file
    folder = run_folder(options.out)
    file = folder / "search.json"
    if not file.exists() and any(not path.name.startswith(".") for path in folder.iterdir()):
        raise UserError(f"{options.out} holds something else: give another --out")
    held = lock(folder / ".lock", wait=True)
    if file.exists():
        _check_same(file, given)
    else:
        promoted = phases[min(1, len(phases) - 1)].trials
        need = BYTES_IN_CHECKPOINT * largest(space) * (promoted + 1)
        check_room(folder, need, "the checkpoints")
        write_json(file, given)
    held.release()
    return Search(folder, phases, space, options.sampler, options.seed)


def _check_same(file: Path, given: dict) -> None:
    """Raises UserError if the search that the file describes is another."""
    try:
        there = json.loads(file.read_text())
    except (OSError, ValueError, RecursionError):
        there = None
    if not isinstance(there, dict):
        raise UserError(f"{file} is damaged: give another --out")
    for name in sorted(given.keys() | there.keys()):
        if given.get(name) != there.get(name):
            old, new = json.dumps(there.get(name)), json.dumps(given.get(name))
            raise UserError(f"the search in {file.parent} has {name} {old}, not {new}: give that, "
                            "or another --out")  # fmt: skip
