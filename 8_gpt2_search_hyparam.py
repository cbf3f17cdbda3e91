"""Stage 8: which hyper-parameters matter, found in phases.

New here, in common/search/: phases.py (what is tried), study.py (which process trains what, and
when) and trial.py (one setting of hyper-parameters). Skim storage.py, report.py and importance.py.
The loop is stage 6's without micro-batches: it trains a trial for the steps that a phase adds.

    python 8_gpt2_search_hyparam.py       # a minute on two CPU cores
    python 8_gpt2_search_hyparam.py --phases 200x100,40x400,8x2000 --sampler tpe
    python 7_gpt2_train_long_run.py --recipe runs/8_search/best.toml

This is successive halving (Jamieson & Talwalkar, 2016): many trials are trained for a few steps,
the best of them are promoted to more steps, and the best of those again. The script prints each
trial's validation loss, the best loss at the end of a phase, and the time left; then a table of the
best, and the effect of each hyper-parameter. Look at lr.png in --out first: learning rates of 1e-5
and 1e-4 are too low, 1e-1 is unstable. Losses are over 2,048 validation tokens; do not compare them
with stage 6's, which are over all 16,384. After an interruption, the same command resumes the
search. Run twice at once, it shares the work (for one process per GPU, add --device cuda:1).
"""

import math
import time
from dataclasses import dataclass
from typing import Literal

import torch

from common.data import Batches, Tokens
from common.evals import evaluate
from common.kit.cli import UserError, duration, is_out_of_memory, require, run
from common.kit.device import pick_device, repeat_exactly
from common.model import GPT
from common.optim import adamw, learning_rate, parameter_groups, set_lr
from common.run.batches import RankBatches
from common.run.ranks import Ranks
from common.run.resume import fingerprint
from common.run.signals import StopSignal
from common.run.tokenfiles import open_tokens
from common.search.phases import WARMUP_STEPS, config_of, read_phases, read_space, total_steps
from common.search.report import report
from common.search.storage import STORAGE_ERRORS
from common.search.study import Search, open_search
from common.search.trial import Trial, TrialFailed
from common.speed import Setting, autocast, autocast_dtype, build, loss_function

EVALS = 3  # maximum per phase and trial


@dataclass
class Options:
    # hyper-parameters, each with the values to try
    lr: tuple[float, ...] = (1e-5, 1e-4, 1e-3, 1e-2, 1e-1)  # learning rate
    batch_size: tuple[int, ...] = (2, 4, 8)  # B, rows in a batch
    block_size: tuple[int, ...] = (16, 32, 64)  # T, tokens in a row
    n_embd: tuple[int, ...] = (64, 128)  # C, the width
    n_layer: tuple[int, ...] = (1, 2, 4)  # the depth
    n_head: tuple[int, ...] = ()  # by default, width / 64, as in GPT-2
    # data
    data: str = "tinyshakespeare"  # train on tinyshakespeare, plays, a text, a folder or shards
    eval_tokens: int = 2048  # evaluate on this many validation tokens
    # run
    phases: str = "24x20,6x60,2x180"  # trials x steps; promote each phase's best to the next
    sampler: Literal["grid", "tpe"] = "grid"  # sample the first phase's trials this way
    seed: int = 1337  # change it to draw other trials, weights and batches
    out: str = "runs/8_search"  # write to this folder
    storage: str | None = None  # save trials in this database or journal; by default, in --out
    # device
    device: str = "auto"  # run on auto, cpu, cuda, cuda:1 or mps


class SearchLog:
    """Prints a line for each validation loss, with the best at the end of a phase so far, and the
    time left."""

    def __init__(self, search: Search):
        self.search, self.start, self.first = search, time.perf_counter(), search.steps_done()

    def val(self, trial: Trial, val_loss: float) -> None:
        with self.search.lock:
            trial.asked.report(val_loss, trial.step)  # for Optuna's dashboard
        ends = {n: t.value for n, t in self.search.latest().items() if t.value is not None}
        if trial.step == trial.phase.last:  # losses before the end of a phase do not count
            ends[trial.number] = val_loss
        best = f"{min(ends.values()):7.4f}" if ends else "      –"
        phases = self.search.phases
        done = self.search.steps_done() + trial.step - trial.phase.first  # by all processes
        seconds_per_step = (time.perf_counter() - self.start) / (done - self.first)
        left = duration(seconds_per_step * (total_steps(phases) - done))
        print(
            f"phase {trial.k + 1}/{len(phases)}  trial {trial.number:>3}  "
            f"step {trial.step:>5}  loss {val_loss:7.4f}  best {best}  {left} left"
        )


def train(
    model: GPT,
    batches: RankBatches,
    val: torch.Tensor,
    log: SearchLog,
    trial: Trial,
    setting: Setting,
    stop: StopSignal,
) -> None:
    """Train a trial's model on the batches, from its checkpoint to the end of its phase. Raises
    TrialFailed for a loss that is not finite, KeyboardInterrupt if asked to stop."""
    device, values, phase = next(model.parameters()).device, trial.values, trial.phase
    groups = parameter_groups(model, weight_decay=0.1)
    optimizer = adamw(groups, values["lr"])
    loss_of = loss_function(model, setting.compile)
    scaler = torch.amp.GradScaler(device.type, enabled=setting.dtype is torch.float16)
    # new: a promoted trial resumes where its last phase ended
    trial.restore(model, optimizer, scaler, batches, device)
    zeros = torch.zeros(batches.B, batches.T, dtype=torch.long, device=device)
    with autocast(device, setting.dtype):
        loss_of(zeros, zeros).backward()  # new: the slow first pass is not in the trial's seconds
    optimizer.zero_grad()
    eval_every = math.ceil(phase.steps / EVALS)
    for step in range(trial.step, phase.last):
        start = time.perf_counter()
        # new: constant after the warm-up, since a trial may be promoted to more steps
        lr = learning_rate(step, values["lr"], WARMUP_STEPS, phase.last, floor=1)
        set_lr(optimizer, lr)
        x, y = (ids.to(device) for ids in next(batches))
        with autocast(device, setting.dtype):
            loss = loss_of(x, y)
        scaler.scale(loss).backward()
        scaler.unscale_(optimizer)
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad()
        loss = loss.item()
        if not math.isfinite(loss):  # new: too high a learning rate ends its trial, not the search
            raise TrialFailed(f"loss {loss} at step {step}")
        trial.step, trial.seconds = step + 1, trial.seconds + time.perf_counter() - start
        if (phase.last - trial.step) % eval_every == 0:
            with autocast(device, setting.dtype):
                val_loss = evaluate(model, val, batches.T).loss
            if not math.isfinite(val_loss):
                raise TrialFailed(f"validation loss {val_loss} at step {trial.step}")
            trial.curve.append((trial.step, trial.seconds, val_loss))
            log.val(trial, val_loss)
        if trial.step == phase.last or stop.asked:  # new: the next phase resumes it
            trial.save(model, optimizer, scaler, batches, device)
        if stop.asked:
            raise KeyboardInterrupt


def train_all(search: Search, tokens: Tokens, options: Options, device, stop: StopSignal) -> None:
    """Train one trial after another until none is left. Raises KeyboardInterrupt if asked to
    stop."""
    # Eager: compiling a trial's model takes longer than training most of them.
    setting = Setting(dtype=autocast_dtype(device), vocab_multiple=128)
    val = torch.from_numpy(tokens.val[: options.eval_tokens].astype("int64"))
    log = SearchLog(search)
    while search.phase() is not None:
        if stop.asked:
            raise KeyboardInterrupt
        trial, reason = search.take(), None
        if trial is None:
            time.sleep(2)  # other processes train the rest of this phase
            continue
        values = trial.values
        chosen = ", ".join(f"{name} {value:g}" for name, value in values.items())
        print(f"trial {trial.number}: {chosen}")
        try:
            model = build(config_of(values), setting, options.seed).to(device)
            B, T = values["batch_size"], values["block_size"]
            batches = RankBatches(tokens.train, B, T, options.seed, Ranks(device))
            train(model, batches, val, log, trial, setting, stop)
        except TrialFailed as error:
            reason = str(error)
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
            reason = "out of memory"
        search.tell(trial, reason)
        if reason:
            print(f"trial {trial.number} failed: {reason}")


def main(options: Options) -> None:
    require("sklearn", "scikit-learn", "the report of a search")
    phases, space = read_phases(options.phases), read_space(options)
    device = pick_device(options.device)
    repeat_exactly(device)
    torch.manual_seed(options.seed)
    tokens = open_tokens(options.data)
    B, T = max(space["batch_size"]), max(space["block_size"])
    Batches(tokens.train, B, T)  # raises UserError if the text is too short
    try:
        search = open_search(options, phases, space, fingerprint(tokens))
        print(f"{total_steps(phases):,} steps in {len(phases)} phases: {options.phases}")
        with StopSignal() as stop:
            train_all(search, tokens, options, device, stop)
        with search.lock:
            report(search, options, len(tokens.val))
    except KeyboardInterrupt:
        print("the same command resumes the search")
        raise
    except STORAGE_ERRORS as error:
        reason = str(error.__cause__ or error).split("\n")[0]
        where = "--storage" if options.storage else f"{options.out}/study.db"
        hint = f"make room, or give another {'--storage' if options.storage else '--out'}"
        raise UserError(f"{where} can't be read or written: {reason}; {hint}") from None


if __name__ == "__main__":
    run(main, Options)

# To try:
#   python 8_gpt2_search_hyparam.py --data plays --n-embd 128 --out runs/8_plays
#   python 8_gpt2_search_hyparam.py --lr 1e-3 3e-3 --phases 12x100,3x400 --out runs/8_narrow
