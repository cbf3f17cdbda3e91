"""What a search found: tables, pictures, and best.toml, a recipe for stage 7."""

import json
import math
import shlex
from pathlib import Path
from statistics import median
from textwrap import fill

from matplotlib import colormaps
from matplotlib.figure import Figure
from matplotlib.ticker import NullFormatter
from optuna.trial import FrozenTrial

from common.kit.cli import UserError
from common.kit.disk import write_text
from common.search.importance import importances, plot_importances
from common.search.phases import WARMUP_STEPS, model_name
from common.search.study import Search, number_of


def report(search: Search, options, n_val: int) -> None:
    """Print which trial is best and what matters; write pictures and best.toml into the search's
    folder. n_val: how many validation tokens the text has. Raises UserError if all trials failed.
    """
    folder, trials = search.folder, list(search.latest().values())
    alive = [trial for trial in trials if trial.value is not None]
    failed = [trial for trial in trials if trial.value is None]
    why = failed[0].user_attrs["reason"] if failed else ""
    if not alive:
        raise UserError(f"every trial failed, the first with: {why}")
    steps = max(trial.user_attrs["step"] for trial in alive)
    last = [trial for trial in alive if trial.user_attrs["step"] == steps]
    best = sorted(last, key=lambda trial: trial.value)
    print_best(best, search.space, steps)
    if failed:
        print(f"failed: {len(failed)} of {len(trials)}, the first with: {why}")
    n = min(options.eval_tokens, n_val)
    print(f"loss: over the first {n:,} of {n_val:,} validation tokens, in windows of")
    print("block_size; stage 6's loss is over all of them: not comparable")
    varied = [name for name, values in search.space.items() if len(values) > 1]
    for file, names in (("lr.png", ["lr"]), ("curves.png", varied or list(search.space))):
        plot_curves(folder / file, trials, search.space, names)
    print_importances(search, varied)
    write_best(folder / "best.toml", best[0], steps, options.data, search.seed)
    print("saved: lr.png, other pictures, and best.toml; to train the best trial as a run:")
    print(f"  python 7_gpt2_train_long_run.py --recipe {shlex.quote(str(folder / 'best.toml'))}")


def _print_row(start: str, cells: dict[str, str]) -> None:
    """A line of a table with a column for each hyper-parameter, under its name."""
    print(start + "".join(f"{cells[name]:>{max(7, len(name) + 2)}}" for name in cells))


def print_best(trials: list[FrozenTrial], space: dict[str, tuple], steps: int) -> None:
    """Print the ten best, and which values of the best are at the edge of the space."""
    print(f"\nthe best, after {steps} steps")
    _print_row(f"{'trial':>8}{'loss':>8}{'seconds':>8}", {name: name for name in space})
    for trial in trials[:10]:
        start = f"{number_of(trial):>8}{trial.value:>8.4f}{trial.user_attrs['seconds']:>8.1f}"
        _print_row(start, {name: f"{trial.params[name]:g}" for name in space})
    best = trials[0].params
    edges = [
        f"{name} {best[name]:g} is the {edge} tried"
        for name, tried in space.items()
        for edge, limit in (("smallest", min(tried)), ("largest", max(tried)))
        if len(tried) > 1 and best[name] == limit
    ]
    if edges:
        print(fill(f"at the edge of the space, so widen it: {', '.join(edges)}", 79))


def print_importances(search: Search, names: list[str]) -> None:
    """Print what each named hyper-parameter did in the first phase: the median loss of the trials
    with each of its values, and its importance, which is plotted too."""
    trials, steps = search.trials(0), search.phases[0].last
    print(f"median loss after {steps} steps, by")
    for name in names:
        losses = {value: [] for value in sorted(search.space[name])}
        for trial in trials:
            losses[trial.params[name]].append(math.inf if trial.value is None else trial.value)
        cells = [f"{median(found):.2f} with {value:g}" for value, found in losses.items() if found]
        print(fill(f"  {name}: {', '.join(cells)}", 79, subsequent_indent="    "))
    found = importances(trials, names)
    if not found:
        return
    title = f"importance, by {len(trials)} trials after {steps} steps"
    plot_importances(search.folder / "importance.png", found, title)
    print(f"{title}, for")
    _print_row(f"{'':24}", {name: name for name in names})
    for outcome, importance in found.items():
        _print_row(f"{outcome:>24}", {n: f"{importance.shares[n]:.0%}" for n in names})
    chances = " and ".join(f"{importance.chance:.0%}" for importance in found.values())
    print(f"  chance alone reaches {chances} once in 20 times: ignore shares below that,")
    print("  and see what the losses above and the curves show")


def write_best(path: Path, best: FrozenTrial, steps: int, data: str, seed: int) -> None:
    """Write a trial as a recipe for stage 7."""
    p, file = best.params, Path(data).expanduser()
    name = str(file.resolve()) if file.exists() else data
    text = f"""\
# validation loss {best.value:.4f} after {steps} steps, at a constant learning rate
data = {json.dumps(name, ensure_ascii=False)}
model = "{model_name(p)}"
lr = {p["lr"]}
batch_size = {p["batch_size"]}
block_size = {p["block_size"]}
total_batch_tokens = {p["batch_size"] * p["block_size"]}
steps = {steps}
warmup_steps = {min(WARMUP_STEPS, steps)}
seed = {seed}
"""
    write_text(path, text)


def plot_curves(path: Path, trials: list[FrozenTrial], space: dict, names: list[str]) -> None:
    """Plot validation loss against steps: a panel per named hyper-parameter, colored by it."""
    figure = Figure(figsize=(max(8, 3 * len(names) + 1), 4.5), layout="constrained")
    panels = figure.subplots(1, len(names), squeeze=False, sharey=True)[0]
    for axes, name in zip(panels, names, strict=True):
        plot_losses(axes, trials, name, space[name])
        axes.legend(title=name, fontsize=8)
    panels[0].set_ylabel("validation loss")
    figure.suptitle("one line per trial; × where one failed")
    figure.savefig(path, dpi=130)


def plot_losses(axes, trials: list[FrozenTrial], name: str, values: tuple) -> None:
    """One line per trial, colored by its value of the hyper-parameter `name`: validation loss
    against steps, on log axes. Where a trial failed, a × at the upper edge."""
    palette = colormaps["tab10"] if len(values) <= 10 else colormaps["turbo"].resampled(len(values))
    colors = {value: palette(k) for k, value in enumerate(sorted(values))}
    for value in sorted({trial.params[name] for trial in trials}):
        axes.plot([], [], color=colors[value], label=f"{value:g}")  # for the legend
    for trial in trials:
        style = {"color": colors[trial.params[name]], "linewidth": 1.2, "alpha": 0.85}
        curve = trial.user_attrs["curve"]
        axes.plot([step for step, _, _ in curve], [loss for _, _, loss in curve], ".-", **style)
        if trial.value is None:
            where = {"transform": axes.get_xaxis_transform(), "clip_on": False}
            axes.plot([trial.user_attrs["step"] or 1], [1], "x", **style, **where)  # log axis: no 0
    axes.set(xscale="log", yscale="log", xlabel="step")
    ends = sorted({trial.user_attrs["step"] for trial in trials if trial.value is not None})
    axes.set_xticks(ends, ends)  # of the phases
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.yaxis.set_major_formatter("{x:g}")  # 6, not 6 × 10⁰
    axes.yaxis.set_minor_formatter("{x:g}")
    axes.grid(alpha=0.3, which="both")
