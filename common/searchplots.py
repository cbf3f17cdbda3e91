"""What a search found, drawn: curves by hyper-parameter, importances, loss against time."""

import os
import warnings
from pathlib import Path
from statistics import fmean, pstdev

import optuna
from matplotlib import colormaps
from matplotlib.figure import Figure
from matplotlib.ticker import NullFormatter
from optuna.trial import FrozenTrial

from common.cli import UserError
from common.runlog import save_picture
from common.search import WARMUP_STEPS, Search


def draw_curves(path: Path, trials: list[FrozenTrial], space: dict[str, tuple]) -> None:
    """A column for each hyper-parameter that varies: held-out loss against steps, and below against
    seconds, a line a setting, coloured by its value."""
    names = [name for name, values in space.items() if len(values) > 1] or list(space)
    figure = Figure(figsize=(3 * len(names) + 1, 7), layout="constrained")
    rows = figure.subplots(2, len(names), squeeze=False, sharey=True)
    for column, name in enumerate(names):
        values = sorted(space[name])
        colors = dict(zip(values, colormaps["viridis"].resampled(len(values)).colors, strict=True))
        for trial in trials:
            steps, seconds, losses = zip(*trial.user_attrs["curve"], strict=True)
            value = trial.params[name]
            for row, x in enumerate((steps, seconds)):
                line = {"color": colors[value], "linewidth": 1, "alpha": 0.8}
                rows[row][column].plot(x, losses, ".-", **line)
                if trial.value is None:  # it failed there
                    rows[row][column].plot(x[-1:], losses[-1:], "x", **line)
        for value, color in colors.items():
            rows[0][column].plot([], [], color=color, label=f"{value:g}")
        rows[0][column].legend(title=name, fontsize=7, title_fontsize=8)
        rows[0][column].set(xlabel="step", xscale="log")
        rows[1][column].set(xlabel="seconds of training", xscale="log")
    for row in rows:
        row[0].set(ylabel="held-out loss")
        for axes in row:
            axes.grid(alpha=0.3)
            axes.xaxis.set_minor_formatter(NullFormatter())
    save_picture(figure, path)


def importances(
    study: optuna.Study, trials: list[FrozenTrial], names: list[str]
) -> dict[str, dict[str, float]]:
    """How much each of the named hyper-parameters has to do with being among the best third of
    these trials, as shares (PED-ANOVA, Watanabe et al., 2023, by Optuna), for two meanings of best:
    the loss, and the loss together with the seconds, each in its standard deviations. Empty if
    there is too little to compare."""
    losses = [trial.value for trial in trials]
    times = [trial.user_attrs["seconds"] for trial in trials]
    if not names or len(trials) < 4 or not pstdev(losses) or not pstdev(times):
        return {}

    def both(trial: FrozenTrial) -> float:
        loss = (trial.value - fmean(losses)) / pstdev(losses)
        return loss + (trial.user_attrs["seconds"] - fmean(times)) / pstdev(times)

    targets = {"loss": lambda trial: trial.value, "loss and time": both}
    found = {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that low values are best: they are
        for name, target in targets.items():
            how = optuna.importance.PedAnovaImportanceEvaluator(target_quantile=1 / 3)
            found[name] = optuna.importance.get_param_importances(
                study, evaluator=how, target=target, params=names
            )
    return found


def draw_importances(path: Path, found: dict[str, dict[str, float]], title: str) -> None:
    """A pair of bars for each hyper-parameter, the most important for the loss on top."""
    names = list(next(iter(found.values())))
    figure = Figure(figsize=(7, 0.6 * len(names) + 1.4), layout="constrained")
    axes = figure.subplots()
    for k, (target, values) in enumerate(found.items()):
        places = [n + 0.38 * k for n in range(len(names))]
        bars = axes.barh(places, [values[name] for name in names], 0.36, label=target)
        axes.bar_label(bars, [f" {values[name]:.0%}" for name in names])
    axes.set_yticks([n + 0.19 for n in range(len(names))], names)
    axes.invert_yaxis()
    axes.margins(x=0.15)
    axes.set(xlabel="share of importance", title=title)
    axes.legend()
    save_picture(figure, path)


def front(trials: list[FrozenTrial]) -> list[FrozenTrial]:
    """Those that no other beats in both loss and time, fastest first."""
    best, found = float("inf"), []
    for trial in sorted(trials, key=lambda t: (t.user_attrs["seconds"], t.value)):
        if trial.value < best:
            best = trial.value
            found.append(trial)
    return found


def draw_front(path: Path, phases: dict[str, list[FrozenTrial]]) -> None:
    """Held-out loss against seconds of training, a dot for each setting at the end of each phase
    {title: trials}, and the line of those that none beats in both."""
    figure = Figure(figsize=(7, 5), layout="constrained")
    axes = figure.subplots()
    for title, trials in phases.items():
        points = [(trial.user_attrs["seconds"], trial.value) for trial in trials]
        axes.plot(*zip(*points, strict=True), "o", label=title)
    edge = front([trial for trials in phases.values() for trial in trials])
    points = [(trial.user_attrs["seconds"], trial.value) for trial in edge]
    axes.plot(*zip(*points, strict=True), "k--", linewidth=1, label="none is better in both")
    axes.set(xlabel="seconds of training", ylabel="held-out loss", xscale="log")
    axes.grid(alpha=0.3, which="both")
    axes.legend()
    save_picture(figure, path)


def say(values: dict) -> str:
    return ", ".join(f"{name} {value:g}" for name, value in values.items())


def _print_row(start: str, cells: dict[str, str]) -> None:
    """A line of a table with a column for each hyper-parameter, under its name."""
    print(start + "".join(f"{cells[name]:>{max(7, len(name) + 2)}}" for name in cells))


def report(search: Search) -> None:
    """Print what is best and what matters; leave pictures and best.toml in the search's folder.
    Raises UserError if no setting came to the end."""
    ends = {f"{p.settings} settings, {p.steps} steps": search.complete(k)
            for k, p in enumerate(search.phases)}  # fmt: skip
    reached = [k for k in range(len(search.phases)) if search.complete(k)]
    if not reached:
        raise UserError(f"every setting failed: see {search.folder}/study.db")
    last, steps = search.complete(reached[-1]), search.phases[reached[-1]].steps
    longest = {}  # each setting's curve, at the end of its last phase
    for k in range(len(search.phases)):
        found = [trial for trial in search.trials(k) if trial.user_attrs.get("curve")]
        longest |= {trial.user_attrs["setting"]: trial for trial in found}
    failed = sum(trial.value is None for trial in longest.values())
    print(f"\nthe best, after {steps} steps")
    _print_row(f"{'setting':>8}{'loss':>8}{'seconds':>8}", {name: name for name in search.space})
    for trial in last[:10]:
        number, seconds = trial.user_attrs["setting"], trial.user_attrs["seconds"]
        values = {name: f"{trial.params[name]:g}" for name in search.space}
        _print_row(f"{number:>8}{trial.value:>8.4f}{seconds:>8.1f}", values)
    folder, best = search.folder, last[0]
    draw_curves(folder / "curves.png", list(longest.values()), search.space)
    draw_front(folder / "front.png", {title: found for title, found in ends.items() if found})
    names = [name for name, values in search.space.items() if len(values) > 1]
    shares = importances(search.studies[0], search.complete(0), names)
    if shares:
        without = f", without {failed} failed" if failed else ""
        title = f"after {search.phases[0].steps} steps{without}"
        draw_importances(folder / "importance.png", shares, title)
        print(f"importance, {title}, for")
        for target, values in shares.items():
            shown = {name: f"{values[name]:.0%}" if name in values else "" for name in search.space}
            _print_row(f"{target:>24}", shown)
    p = best.params
    lines = [
        f"# held-out loss {best.value:.4f} after {steps} steps, at a constant rate after warm-up",
        f'model = "{p["n_layer"]}x{p.get("n_head", p["n_embd"] // 64)}x{p["n_embd"]}"',
        *(f"{name} = {p[name]}" for name in ("lr", "batch_size", "block_size")),
        f"total_batch_tokens = {p['batch_size'] * p['block_size']}",
        f"steps = {steps}",
        f"warmup_steps = {min(WARMUP_STEPS, steps)}",
    ]
    partial = folder / ".best.partial"
    partial.write_text("\n".join(lines) + "\n")
    os.replace(partial, folder / "best.toml")
    print("kept: pictures, and best.toml; to train that setting as a run:")
    print(f"  python 6_gpt2_train_hyparam.py --recipe {folder}/best.toml")
