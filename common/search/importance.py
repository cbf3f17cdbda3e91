"""Which hyper-parameters matter: the share of each in how the trials of a search differ (fANOVA,
Hutter et al., 2014, by Optuna), beside the shares that chance alone would show."""

import random
from dataclasses import dataclass
from statistics import fmean, pstdev

import optuna
from optuna.trial import FrozenTrial, create_trial

MIN_TRIALS = 4  # to compare
SHUFFLES = 19  # so that a share above all of theirs comes by chance once in 20 times


@dataclass(frozen=True)
class Importance:
    shares: dict[str, float]  # by hyper-parameter; 1 together
    chance: float  # the largest share of any when the outcomes are shuffled among the trials


def importances(trials: list[FrozenTrial], names: list[str]) -> dict[str, Importance]:
    """The importance of the named hyper-parameters for two outcomes of these trials: "loss", and
    "loss and time", the two in standard deviations, added. A trial that failed counts as the worst
    of the others. Empty if there is too little to compare."""
    done = [trial for trial in trials if trial.value is not None]
    losses = [trial.value for trial in done]
    times = [trial.user_attrs["seconds"] for trial in done]
    if not names or len(done) < MIN_TRIALS or not pstdev(losses) or not pstdev(times):
        return {}
    both = [
        (loss - fmean(losses)) / pstdev(losses) + (time - fmean(times)) / pstdev(times)
        for loss, time in zip(losses, times, strict=True)
    ]
    if not pstdev(both):
        return {}
    failed = [trial for trial in trials if trial.value is None]
    return {
        name: _importance(done + failed, outcomes + [max(outcomes)] * len(failed), names)
        for name, outcomes in (("loss", losses), ("loss and time", both))
    }


def _importance(trials: list[FrozenTrial], outcomes: list[float], names: list[str]) -> Importance:
    shares = _shares(trials, outcomes, names)
    shuffled, order = list(outcomes), random.Random(0)
    chance = 0.0
    for _ in range(SHUFFLES):
        order.shuffle(shuffled)
        chance = max(chance, *_shares(trials, shuffled, names).values())
    return Importance(shares, chance)


def _shares(trials: list[FrozenTrial], outcomes: list[float], names: list[str]) -> dict[str, float]:
    study = optuna.create_study()
    for trial, outcome in zip(trials, outcomes, strict=True):
        copy = {"params": trial.params, "distributions": trial.distributions, "value": outcome}
        study.add_trial(create_trial(**copy))
    fanova = optuna.importance.FanovaImportanceEvaluator(n_trees=32, seed=0)
    return optuna.importance.get_param_importances(study, evaluator=fanova, params=names)
