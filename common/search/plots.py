"""What a search found, as pictures: loss curves by hyper-parameter, importances, loss against
time."""

from pathlib import Path

from matplotlib import colormaps
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, NullFormatter
from optuna.trial import FrozenTrial

from common.kit.disk import save_figure
from common.search.importance import Importance


def plot_curves(path: Path, trials: list[FrozenTrial], space: dict[str, tuple]) -> None:
    """A column for each hyper-parameter that varies, in its colours: validation loss against steps,
    and below against seconds."""
    names = [name for name, values in space.items() if len(values) > 1] or list(space)
    figure = Figure(figsize=(3 * len(names) + 1, 7), layout="constrained")
    rows = figure.subplots(2, len(names), squeeze=False, sharey=True)
    for by_steps, by_seconds, name in zip(*rows, names, strict=True):
        plot_losses(by_steps, trials, name, space[name], "step")
        plot_losses(by_seconds, trials, name, space[name], "seconds")
        by_steps.legend(title=name, fontsize=7, title_fontsize=8)
    for row in rows:
        row[0].set(ylabel="validation loss")
    save_figure(figure, path)


def plot_lr(path: Path, trials: list[FrozenTrial], space: dict[str, tuple]) -> None:
    """Validation loss against steps, coloured by learning rate."""
    figure = Figure(figsize=(8, 4.5), layout="constrained")
    axes = figure.subplots()
    plot_losses(axes, trials, "lr", space["lr"], "step")
    axes.set(ylabel="validation loss", title="one line per trial; × where one failed")
    axes.legend(title="learning rate")
    save_figure(figure, path)


def plot_losses(axes, trials: list[FrozenTrial], name: str, values: tuple, x: str) -> None:
    """A line a trial, coloured by its value of the hyper-parameter `name`: validation loss against
    x, "step" or "seconds", on log axes. Where a trial failed, a × at the upper edge."""
    values = sorted(values)
    palette = colormaps["tab10"] if len(values) <= 10 else colormaps["turbo"].resampled(len(values))
    colors = {value: palette(k) for k, value in enumerate(values)}
    column = ("step", "seconds").index(x)
    for trial in trials:
        style = {"color": colors[trial.params[name]], "linewidth": 1.2, "alpha": 0.85}
        curve = trial.user_attrs["curve"]
        axes.plot([p[column] for p in curve], [p[2] for p in curve], ".-", **style)
        if trial.value is None:
            where = {"transform": axes.get_xaxis_transform(), "clip_on": False}
            axes.plot([trial.user_attrs[x] or 1], [1], "x", **style, **where)  # no log of 0
    for value, color in colors.items():
        axes.plot([], [], color=color, label=f"{value:g}")
    axes.set(xscale="log", yscale="log", xlabel="step" if x == "step" else "seconds of training")
    if x == "step":
        ends = sorted({t.user_attrs["step"] for t in trials if t.value is not None})
        axes.set_xticks(ends, ends)  # of the phases
        axes.xaxis.set_minor_formatter(NullFormatter())
    show_plainly(axes)


def show_plainly(axes) -> None:
    """Losses as 6, not 6 × 10⁰, and a grid."""
    for axis in (axes.yaxis.set_major_formatter, axes.yaxis.set_minor_formatter):
        axis(FuncFormatter(lambda loss, _: f"{loss:g}"))
    axes.grid(alpha=0.3, which="both")


def plot_importances(path: Path, found: dict[str, Importance], title: str) -> None:
    """A pair of bars for each hyper-parameter, and a dashed line for each of the pair's outcomes:
    the share that chance reaches. Bars below it are pale."""
    names = list(next(iter(found.values())).shares)
    figure = Figure(figsize=(8, 0.6 * len(names) + 2), layout="constrained")
    axes = figure.subplots()
    for k, (outcome, importance) in enumerate(found.items()):
        shares = [importance.shares[name] for name in names]
        bars = axes.barh([n + 0.38 * k for n in range(len(names))], shares, 0.36, color=f"C{k}")
        axes.bar_label(bars, [f" {share:.0%}" for share in shares])
        bars.set_label(outcome)
        for bar, share in zip(bars, shares, strict=True):
            bar.set_alpha(1 if share > importance.chance else 0.3)
        axes.axvline(importance.chance, color=f"C{k}", linestyle="--", linewidth=1)
    axes.set_yticks([n + 0.19 for n in range(len(names))], names)
    axes.invert_yaxis()
    axes.margins(x=0.15)
    dashed = "dashed: what chance alone reaches once in 20 times; pale bars are below it"
    axes.set(xlabel="share of importance")
    axes.set_title(f"{title}\n{dashed}", fontsize=10)
    axes.legend(loc="lower right")
    save_figure(figure, path)


def front(trials: list[FrozenTrial]) -> list[FrozenTrial]:
    """Those that no other beats in both loss and time, fastest first."""
    best, found = float("inf"), []
    for trial in sorted(trials, key=lambda t: (t.user_attrs["seconds"], t.value)):
        if trial.value < best:
            best = trial.value
            found.append(trial)
    return found


def plot_front(path: Path, phases: dict[str, list[FrozenTrial]]) -> None:
    """Validation loss against seconds of training, a dot for each trial at the end of each phase
    {title: trials}, and the steps of those that none beats in both."""
    figure = Figure(figsize=(7, 5), layout="constrained")
    axes = figure.subplots()
    for title, trials in phases.items():
        axes.plot(*points(trials), "o", label=title)
    edge = front([trial for trials in phases.values() for trial in trials])
    axes.plot(*points(edge), "k--", linewidth=1, drawstyle="steps-post",
              label="none is better in both")  # fmt: skip
    axes.set(xlabel="seconds of training", ylabel="validation loss", xscale="log", yscale="log")
    show_plainly(axes)
    axes.legend()
    save_figure(figure, path)


def points(trials: list[FrozenTrial]) -> tuple[list[float], list[float]]:
    """Seconds and losses."""
    return [trial.user_attrs["seconds"] for trial in trials], [trial.value for trial in trials]
