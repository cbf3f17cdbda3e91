"""What a search found, drawn: curves by hyper-parameter, importances, loss against time."""

import json
import shlex
from pathlib import Path

from matplotlib import colormaps
from matplotlib.figure import Figure
from matplotlib.ticker import NullFormatter
from optuna.trial import FrozenTrial, TrialState

from common.cli import UserError
from common.disk import write_text
from common.importance import Importance, importances
from common.runlog import save_picture
from common.search import WARMUP_STEPS, Search


def draw_curves(path: Path, trials: list[FrozenTrial], space: dict[str, tuple]) -> None:
    """A column for each hyper-parameter that varies: held-out loss against steps, and below against
    seconds, a line a setting, coloured by its value; where one failed, a × at the upper edge."""
    names = [name for name, values in space.items() if len(values) > 1] or list(space)
    figure = Figure(figsize=(3 * len(names) + 1, 7), layout="constrained")
    rows = figure.subplots(2, len(names), squeeze=False, sharey=True)
    ends = sorted({t.user_attrs["curve"][-1][0] for t in trials if t.value is not None})
    for column, name in enumerate(names):
        values = sorted(space[name])
        colors = dict(zip(values, colormaps["viridis"].resampled(len(values)).colors, strict=True))
        for trial in trials:
            end = trial.user_attrs
            line = {"color": colors[trial.params[name]], "linewidth": 1, "alpha": 0.8}
            for k, x in enumerate(("step", "seconds")):
                axes, curve = rows[k][column], end["curve"]
                axes.plot([p[k] for p in curve], [p[2] for p in curve], ".-", **line)
                if trial.value is None:
                    axes.plot([end[x]], [1], "x", transform=axes.get_xaxis_transform(), **line)
        for value, color in colors.items():
            rows[0][column].plot([], [], color=color, label=f"{value:g}")
        rows[0][column].legend(title=name, fontsize=7, title_fontsize=8)
        rows[0][column].set(xlabel="step", xscale="log")
        rows[0][column].set_xticks(ends, ends)  # of the phases
        rows[1][column].set(xlabel="seconds of training", xscale="log")
    for row in rows:
        row[0].set(ylabel="held-out loss")
        for axes in row:
            axes.grid(alpha=0.3)
            axes.xaxis.set_minor_formatter(NullFormatter())
    save_picture(figure, path)


def draw_importances(path: Path, found: dict[str, Importance], title: str) -> None:
    """A pair of bars for each hyper-parameter, and for each of the pair's outcomes a line: what no
    share should be believed that does not reach it."""
    names = list(next(iter(found.values())).shares)
    figure = Figure(figsize=(7, 0.6 * len(names) + 1.8), layout="constrained")
    axes = figure.subplots()
    for k, (outcome, importance) in enumerate(found.items()):
        places = [n + 0.38 * k for n in range(len(names))]
        shares = [importance.shares[name] for name in names]
        bars = axes.barh(places, shares, 0.36, label=outcome)
        axes.bar_label(bars, [f" {share:.0%}" for share in shares])
        axes.axvline(importance.chance, color=f"C{k}", linestyle="--", linewidth=1,
                     label=f"{outcome}: by chance, once in 20 times")  # fmt: skip
    axes.set_yticks([n + 0.19 for n in range(len(names))], names)
    axes.invert_yaxis()
    axes.margins(x=0.15)
    axes.set(xlabel="share of importance", title=title)
    axes.legend(fontsize=8, loc="lower right")
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
    {title: trials}, and the steps of those that none beats in both."""
    figure = Figure(figsize=(7, 5), layout="constrained")
    axes = figure.subplots()
    for title, trials in phases.items():
        points = [(trial.user_attrs["seconds"], trial.value) for trial in trials]
        axes.plot(*zip(*points, strict=True), "o", label=title)
    edge = front([trial for trials in phases.values() for trial in trials])
    points = [(trial.user_attrs["seconds"], trial.value) for trial in edge]
    axes.plot(*zip(*points, strict=True), "k--", linewidth=1, drawstyle="steps-post",
              label="none is better in both")  # fmt: skip
    axes.set(xlabel="seconds of training", ylabel="held-out loss", xscale="log")
    axes.grid(alpha=0.3, which="both")
    axes.legend()
    save_picture(figure, path)


def say(values: dict) -> str:
    return ", ".join(f"{name} {value:g}" for name, value in values.items())


def _print_row(start: str, cells: dict[str, str]) -> None:
    """A line of a table with a column for each hyper-parameter, under its name."""
    print(start + "".join(f"{cells[name]:>{max(7, len(name) + 2)}}" for name in cells))


def report(search: Search, data: str) -> None:
    """Print what is best and what matters; leave pictures and best.toml, which trains on `data`, in
    the search's folder. Raises UserError if every setting failed."""
    everything = [trial for k in range(len(search.phases)) for trial in search.trials(k)]
    failed = [trial for trial in everything if trial.state == TrialState.FAIL]
    gone = {trial.user_attrs["setting"] for trial in failed}
    ends = {phase: search.complete(k) for k, phase in enumerate(search.phases)}
    stayed = {phase: [t for t in trials if t.user_attrs["setting"] not in gone]
              for phase, trials in ends.items()}  # fmt: skip
    if not any(stayed.values()):
        why = failed[0].user_attrs["reason"]
        raise UserError(f"every setting failed, the first so: {why}; see {search.folder}/study.db")
    steps = max(phase.steps for phase, trials in stayed.items() if trials)
    last = next(trials for phase, trials in stayed.items() if phase.steps == steps)
    print(f"\nthe best, after {steps} steps")
    _print_row(f"{'setting':>8}{'loss':>8}{'seconds':>8}", {name: name for name in search.space})
    for trial in last[:10]:
        number, seconds = trial.user_attrs["setting"], trial.user_attrs["seconds"]
        values = {name: f"{trial.params[name]:g}" for name in search.space}
        _print_row(f"{number:>8}{trial.value:>8.4f}{seconds:>8.1f}", values)
    if failed:
        why = failed[0].user_attrs["reason"]
        print(f"failed: {len(failed)} of {len(search.trials(0))}, the first so: {why}")
    longest = {trial.user_attrs["setting"]: trial for trial in everything
               if "curve" in trial.user_attrs}  # fmt: skip
    folder = search.folder
    draw_curves(folder / "curves.png", list(longest.values()), search.space)
    titles = {f"{len(trials)} × {phase.steps} steps": trials for phase, trials in ends.items()}
    draw_front(folder / "front.png", {title: trials for title, trials in titles.items() if trials})
    names = [name for name, values in search.space.items() if len(values) > 1]
    found = importances(search.trials(0), names)
    if found:
        title = (
            f"importance, by {len(search.trials(0))} settings after {search.phases[0].steps} steps"
        )
        draw_importances(folder / "importance.png", found, title)
        print(f"{title}, for")
        for outcome, importance in found.items():
            shares = importance.shares
            cells = {name: f"{shares[name]:.0%}" if name in shares else "" for name in search.space}
            _print_row(f"{outcome:>24}", cells)
        chances = " and ".join(f"{importance.chance:.0%}" for importance in found.values())
        print(f"  chance alone reaches {chances} once in 20 times: believe what is above")
    write_best(folder / "best.toml", last[0], steps, data, search.seed)
    print("kept: pictures, and best.toml; to train that setting as a run:")
    print(f"  python 6_gpt2_train_hyparam.py --recipe {shlex.quote(str(folder / 'best.toml'))}")


def write_best(path: Path, best: FrozenTrial, steps: int, data: str, seed: int) -> None:
    """A setting as a recipe for stage 6."""
    p, file = best.params, Path(data).expanduser()
    name = str(file.resolve()) if file.exists() else data
    lines = [
        f"# held-out loss {best.value:.4f} after {steps} steps, at a constant rate after warm-up",
        f"data = {json.dumps(name, ensure_ascii=False)}",
        f'model = "{p["n_layer"]}x{p.get("n_head", p["n_embd"] // 64)}x{p["n_embd"]}"',
        *(f"{name} = {p[name]}" for name in ("lr", "batch_size", "block_size")),
        f"total_batch_tokens = {p['batch_size'] * p['block_size']}",
        f"steps = {steps}",
        f"warmup_steps = {min(WARMUP_STEPS, steps)}",
        f"seed = {seed}",
    ]
    write_text(path, "\n".join(lines) + "\n")
