"""Which hyper-parameters matter: the share of each in the differences between a search's trials
(fANOVA, Hutter et al., 2014, by Optuna), beside the shares that chance alone would show."""

import random
from dataclasses import dataclass
from pathlib import Path
from statistics import pstdev

import optuna
from matplotlib.figure import Figure
from optuna.trial import FrozenTrial, create_trial

MIN_TRIALS = 4  # fewer are not compared
SHUFFLES = 19  # then a share above all of theirs occurs by chance once in 20 times


@dataclass(frozen=True)
class Importance:
    shares: dict[str, float]  # by hyper-parameter; they add up to 1
    chance: float  # the largest share of any when the outcomes are shuffled among the trials


def importances(trials: list[FrozenTrial], names: list[str]) -> dict[str, Importance]:
    """The importance of the named hyper-parameters for two outcomes of these trials: "loss", and
    "loss and time", the sum of both in standard deviations. A failed trial counts as the worst of
    the others. Empty if there is too little to compare."""
    done = [trial for trial in trials if trial.value is not None]
    losses = [trial.value for trial in done]
    times = [trial.user_attrs["seconds"] for trial in done]
    if not names or len(done) < MIN_TRIALS or not pstdev(losses) or not pstdev(times):
        return {}
    a, b = 1 / pstdev(losses), 1 / pstdev(times)
    both = [a * loss + b * seconds for loss, seconds in zip(losses, times, strict=True)]
    outcomes = {"loss": losses, "loss and time": both}
    failed = [trial for trial in trials if trial.value is None]
    found = {}
    for outcome, values in outcomes.items():
        values = values + [max(values)] * len(failed)
        shares = _shares(done + failed, values, names)
        chance, order = 0.0, random.Random(0)
        for _ in range(SHUFFLES):
            order.shuffle(values)
            chance = max(chance, *_shares(done + failed, values, names).values())
        found[outcome] = Importance(shares, chance)
    return found


def _shares(trials: list[FrozenTrial], outcomes: list[float], names: list[str]) -> dict[str, float]:
    study = optuna.create_study()
    for trial, outcome in zip(trials, outcomes, strict=True):
        copy = {"params": trial.params, "distributions": trial.distributions, "value": outcome}
        study.add_trial(create_trial(**copy))
    fanova = optuna.importance.FanovaImportanceEvaluator(n_trees=32, seed=0)
    return optuna.importance.get_param_importances(study, evaluator=fanova, params=names)


def plot_importances(path: Path, found: dict[str, Importance], title: str) -> None:
    """Plot a pair of bars for each hyper-parameter, one bar per outcome, and a dashed line for the
    share that chance reaches in each outcome. Bars below it are pale."""
    names = list(next(iter(found.values())).shares)
    figure = Figure(figsize=(8, 0.6 * len(names) + 2), layout="constrained")
    axes = figure.subplots()
    for k, (outcome, importance) in enumerate(found.items()):
        shares = [importance.shares[name] for name in names]
        places = [n + 0.38 * k for n in range(len(names))]
        bars = axes.barh(places, shares, 0.36, color=f"C{k}", label=outcome)
        axes.bar_label(bars, [f" {share:.0%}" for share in shares])
        for bar, share in zip(bars, shares, strict=True):
            bar.set_alpha(1 if share > importance.chance else 0.3)
        axes.axvline(importance.chance, color=f"C{k}", linestyle="--", linewidth=1)
    axes.set_yticks([n + 0.19 for n in range(len(names))], names)
    axes.invert_yaxis()
    axes.margins(x=0.15)
    dashed = "dashed: what chance alone reaches once in 20 times; pale bars are below it"
    axes.set_xlabel("share of importance")
    axes.set_title(f"{title}\n{dashed}", fontsize=10)
    for handle in axes.legend(loc="lower right").legend_handles:
        handle.set_alpha(1)
    figure.savefig(path, dpi=130)
