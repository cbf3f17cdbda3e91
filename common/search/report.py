"""What a search found: tables, pictures, and best.toml, a recipe for stage 7."""

import json
import math
import shlex
from pathlib import Path
from statistics import median
from textwrap import fill

from optuna.trial import FrozenTrial

from common.kit.cli import UserError
from common.kit.disk import write_text
from common.search import plots
from common.search.importance import importances
from common.search.study import Search

WARMUP_STEPS = 10  # of a trial, and of a run with best.toml


def describe(values: dict) -> str:
    return ", ".join(f"{name} {value:g}" for name, value in values.items())


def report(search: Search, options, n_val: int) -> None:
    """Print which trial is best and what matters; write pictures and best.toml into the search's
    folder. n_val: how many validation tokens the text has. Raises UserError if all trials failed.
    """
    latest = search.latest()
    failed = [trial for trial in latest.values() if trial.value is None]
    why = failed[0].user_attrs["reason"] if failed else ""
    if len(failed) == len(latest):
        raise UserError(f"every trial failed, the first so: {why}; see {search.folder}/study.db")
    # A trial that failed later counts no more, even where it was among the best.
    ends = {phase.steps: search.complete(k) for k, phase in enumerate(search.phases)}
    stayed = {steps: [t for t in trials if latest[_number(t)].value is not None]
              for steps, trials in ends.items()}  # fmt: skip
    steps = max(steps for steps, trials in stayed.items() if trials)
    print_best(search, stayed[steps], steps)
    if failed:
        print(f"failed: {len(failed)} of {len(latest)}, the first so: {why}")
    n = min(options.eval_tokens, n_val)
    print(f"loss: over the first {n:,} of {n_val:,} validation tokens, in windows of")
    print("block_size; stage 6's are over all of them: not comparable")
    folder = search.folder
    plots.plot_lr(folder / "lr.png", list(latest.values()), search.space)
    plots.plot_curves(folder / "curves.png", list(latest.values()), search.space)
    dots = {f"{len(trials)} × {steps} steps": trials for steps, trials in ends.items() if trials}
    plots.plot_front(folder / "front.png", dots)
    print_importances(search)
    write_best(folder / "best.toml", stayed[steps][0], steps, options.data, search.seed)
    print("saved: lr.png, other pictures, and best.toml; to train the best trial as a run:")
    print(f"  python 7_gpt2_train_long_run.py --recipe {shlex.quote(str(folder / 'best.toml'))}")


def _number(trial: FrozenTrial) -> int:
    return trial.user_attrs["number"]


def _print_row(start: str, cells: dict[str, str]) -> None:
    """A line of a table with a column for each hyper-parameter, under its name."""
    print(start + "".join(f"{cells[name]:>{max(7, len(name) + 2)}}" for name in cells))


def print_best(search: Search, trials: list[FrozenTrial], steps: int) -> None:
    """A table of the ten best, and which values of the best are at the edge of what was tried."""
    print(f"\nthe best, after {steps} steps")
    _print_row(f"{'trial':>8}{'loss':>8}{'seconds':>8}", {name: name for name in search.space})
    for trial in trials[:10]:
        values = {name: f"{trial.params[name]:g}" for name in search.space}
        start = f"{_number(trial):>8}{trial.value:>8.4f}{trial.user_attrs['seconds']:>8.1f}"
        _print_row(start, values)
    edges = []
    for name, value in trials[0].params.items():
        tried = search.space[name]
        if len(tried) > 1 and value in (min(tried), max(tried)):
            edge = "largest" if value == max(tried) else "smallest"
            edges.append(f"{name} {value:g} is the {edge} tried")
    if edges:
        print(fill(f"at the edge, so try further: {', '.join(edges)}", 79))


def print_importances(search: Search) -> None:
    """What each hyper-parameter did in the first phase: the median loss of the trials with each of
    its values, and its importance, which is plotted too."""
    trials, phase = search.trials(0), search.phases[0]
    names = [name for name, values in search.space.items() if len(values) > 1]
    print(f"median loss after {phase.steps} steps, by")
    for name in names:
        losses = {value: [] for value in sorted(search.space[name])}
        for trial in trials:
            losses[trial.params[name]].append(math.inf if trial.value is None else trial.value)
        cells = [f"{median(found):.2f} with {value:g}" for value, found in losses.items() if found]
        print(fill(f"  {name}: {', '.join(cells)}", 79, subsequent_indent="    "))
    found = importances(trials, names)
    if not found:
        return
    title = f"importance, by {len(trials)} trials after {phase.steps} steps"
    plots.plot_importances(search.folder / "importance.png", found, title)
    print(f"{title}, for")
    _print_row(f"{'':24}", {name: name for name in names})
    for outcome, importance in found.items():
        _print_row(f"{outcome:>24}", {n: f"{importance.shares[n]:.0%}" for n in names})
    chances = " and ".join(f"{importance.chance:.0%}" for importance in found.values())
    print(f"  chance alone reaches {chances} once in 20 times: ignore shares below that,")
    print("  and see what the losses above and the curves show")


def write_best(path: Path, best: FrozenTrial, steps: int, data: str, seed: int) -> None:
    """A trial as a recipe for stage 7."""
    p, file = best.params, Path(data).expanduser()
    name = str(file.resolve()) if file.exists() else data
    lines = [
        f"# validation loss {best.value:.4f} after {steps} steps, at a constant learning rate",
        f"data = {json.dumps(name, ensure_ascii=False)}",
        f'model = "{p["n_layer"]}x{p.get("n_head", p["n_embd"] // 64)}x{p["n_embd"]}"',
        *(f"{name} = {p[name]}" for name in ("lr", "batch_size", "block_size")),
        f"total_batch_tokens = {p['batch_size'] * p['block_size']}",
        f"steps = {steps}",
        f"warmup_steps = {min(WARMUP_STEPS, steps)}",
        f"seed = {seed}",
    ]
    write_text(path, "\n".join(lines) + "\n")
