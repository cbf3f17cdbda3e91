"""Which trials a search tries first: sampled by Optuna, none of them twice."""

import itertools
import random

import optuna
from optuna.trial import TrialState

MAX_REPEATS = 20  # of trials that were tried before, by a sampler; then one of the rest is taken


def sample(search) -> optuna.Trial:
    """A trial that was not tried before, by the sampler if it finds one. It counts once it has
    its number. A sample that repeats another fails, and no sampler learns from it."""
    study, seen = search.studies[0], [trial.params for trial in search.trials(0)]
    usual = study.sampler
    for _ in range(MAX_REPEATS):
        study.sampler = _new_sampler(search)
        asked = study.ask(search.distributions)
        study.sampler = usual  # told of a trial, the grid's would want to stop a loop
        if asked.params not in seen:
            asked.set_user_attr("number", len(seen))
            return asked
        study.tell(asked, state=TrialState.FAIL)
    products = itertools.product(*search.space.values())
    whole = (dict(zip(search.space, values, strict=True)) for values in products)
    unseen = [values for values in whole if values not in seen]
    chosen = random.Random(search.seed + len(seen)).choice(unseen)
    return search.ask(0, chosen, len(seen))


def _new_sampler(search):
    """The grid's knows what was sampled; the others get a seed for each sample, of any
    process."""
    if search.sampler == "grid":
        return optuna.samplers.GridSampler(search.space, search.seed % 2**32)
    seed = (search.seed + len(search.studies[0].get_trials(deepcopy=False))) % 2**32
    if search.sampler == "random":
        return optuna.samplers.RandomSampler(seed)
    return optuna.samplers.TPESampler(seed=seed, constant_liar=True)
