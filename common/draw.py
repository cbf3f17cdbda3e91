"""Which settings a search tries first: drawn by one of Optuna's samplers, none of them twice."""

import itertools
import random

import optuna
from optuna.distributions import CategoricalDistribution
from optuna.trial import Trial, TrialState

TRIES = 20  # draws of a sampler that may repeat itself; then one of those left is taken


def distributions(space: dict[str, tuple]) -> dict[str, CategoricalDistribution]:
    """A space as Optuna wants it."""
    return {name: CategoricalDistribution(values) for name, values in space.items()}


def draw(
    study: optuna.Study, space: dict[str, tuple], sampler: str, seed: int, seen: list
) -> Trial:
    """A new trial of the study, none of the settings in `seen`: by the sampler (grid, random or
    tpe) if it finds one. It counts once it has its number, len(seen), as the attribute "setting"; a
    draw that repeats another is told as failed, and no sampler learns from it."""
    usual = study.sampler
    for _ in range(TRIES):
        study.sampler = _new_sampler(study, space, sampler, seed)
        trial = study.ask(distributions(space))
        study.sampler = usual  # told of a trial, the grid's would want to stop a loop of Optuna's
        if trial.params not in seen:
            trial.set_user_attr("setting", len(seen))
            return trial
        study.tell(trial, state=TrialState.FAIL)
    settings = (
        dict(zip(space, values, strict=True)) for values in itertools.product(*space.values())
    )
    unseen = [setting for setting in settings if setting not in seen]
    chosen = random.Random(seed + len(seen)).choice(unseen)
    study.enqueue_trial(chosen, {"setting": len(seen)})
    return study.ask(distributions(space))


def _new_sampler(study: optuna.Study, space: dict, sampler: str, seed: int):
    """The grid's knows what was drawn; the others get a seed for each draw, of any process."""
    if sampler == "grid":
        return optuna.samplers.GridSampler(space, seed % 2**32)
    seed = (seed + len(study.get_trials(deepcopy=False))) % 2**32
    if sampler == "random":
        return optuna.samplers.RandomSampler(seed)
    return optuna.samplers.TPESampler(seed=seed, constant_liar=True)
