"""Stage 7: which hyper-parameters matter, found in phases and drawn.

New here: common/phases.py, common/draw.py and common/search.py (who trains what, when),
common/searchstart.py, and common/importance.py and common/searchplots.py (what was found, drawn).
The loop is stage 6's without its comforts: it trains one setting for the steps that a phase adds.

    python 7_gpt2_search_hyparam.py                          # two CPU cores: under 10 minutes
    python 7_gpt2_search_hyparam.py --phases 200x100,40x400,8x2000 --sampler tpe --data my_own.txt
    python 6_gpt2_train_hyparam.py --recipe runs/7_search/best.toml --steps 2000

As in liteGPT's study, many settings are trained for a few steps, the best of them go on for more,
and the best of those for more again. You will see each setting with its held-out loss, the best so
far and the time left; then the table of the best, and pictures: curves.png, importance.png and
front.png. A learning rate of 1e-5 learns next to nothing in so few steps, and one of 1e-1 loses
too. Interrupted, the same command goes on; started twice, the two share the work (one a GPU:
--device cuda:1).
"""

import itertools
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from optuna.exceptions import StorageInternalError

from common import checkpoint
from common.cli import UserError, duration, is_out_of_memory, run
from common.data import Batches, Tokens
from common.device import pick_device, seed_everything, synchronize
from common.distributed import Ranks, StopSignal
from common.evals import evaluate
from common.init import init_weights, tie_weights
from common.model import GPT
from common.optim import adamw, clip_gradients, learning_rate, parameter_groups
from common.phases import read_phases, read_space, steps_in_all
from common.search import WARMUP_STEPS, Claim, Search
from common.searchplots import report, say
from common.searchstart import checkpoint_of, config_of, open_search
from common.speed import autocast, autocast_dtype, pad_vocab
from common.start import fingerprint, put_back
from common.tokenfiles import open_tokens

LOOKS = 4  # evaluations a phase, at most
SECONDS_TO_LOSE = 60  # of training, to a kill or a power cut


@dataclass
class Options:
    data: str = "tinyshakespeare"  # also: plays, a text file, a folder of those or of shards
    phases: str = "24x40,8x160,3x480"  # settings x steps, each phase's best go on in the next
    sampler: Literal["grid", "random", "tpe"] = "grid"  # Optuna's, for the first phase
    space: str | None = None  # a TOML file with lists for the names below
    lr: tuple[float, ...] = (1e-5, 1e-4, 1e-3, 1e-2, 1e-1)
    batch_size: tuple[int, ...] = (4, 8, 16)  # B, rows in a batch
    block_size: tuple[int, ...] = (32, 64, 128)  # T, tokens in a row
    n_embd: tuple[int, ...] = (64, 128, 192)  # C, the width
    n_layer: tuple[int, ...] = (1, 2, 4)
    n_head: tuple[int, ...] = ()  # none: width / 64, as in GPT-2
    eval_tokens: int = 4096  # held-out tokens
    seed: int = 1337
    out: str = "runs/7_search"  # the search's folder
    device: str = "auto"  # auto, cpu, cuda, cuda:1 or mps


def train(claim: Claim, before: int, until: int, tokens: Tokens, options: Options,
          device: torch.device, stop: StopSignal, look: Callable) -> dict:  # fmt: skip
    """Train a setting for a phase, from step `before` up to `until`, or from the checkpoint that an
    interruption left; look(step, loss) at its held-out loss now and then. Returns its state, kept
    beside its weights: step, seconds, and a curve of (step, seconds, held-out loss); with a
    "reason" if the loss became no number. Raises KeyboardInterrupt if asked to stop."""
    values, ranks = claim.values, Ranks(device)
    B, T = values["batch_size"], values["block_size"]
    seed_everything(options.seed)
    model = init_weights(tie_weights(GPT(config_of(values))), options.seed)
    model = pad_vocab(model).to(device).train()
    optimizer = adamw(parameter_groups(model, weight_decay=0.1), values["lr"])
    batches = Batches(tokens.train, B, T, options.seed)
    held_out = torch.from_numpy(tokens.held_out[: options.eval_tokens].astype("int64"))
    dtype = autocast_dtype(device)
    scaler = torch.amp.GradScaler(device.type, enabled=dtype is torch.float16)
    state = {"step": 0, "seconds": 0.0, "curve": [], "data": batches.state(), "scaler": {}}
    found = checkpoint_of(claim, until)
    if found:
        path, state = found
        put_back(path, state, model, optimizer, scaler, batches, ranks)

    def gradient(x, y) -> torch.Tensor:
        with autocast(device, dtype):
            loss = model(x, y)[1]
        scaler.scale(loss).backward()
        return loss

    def save() -> None:
        kept = state | {"data": batches.state(), "scaler": scaler.state_dict()}
        texts = {"state": kept, "config": values}
        checkpoint.save(claim.folder, texts, model, optimizer, 1, ranks)

    nothing = torch.zeros(B, T, dtype=torch.long, device=device)
    gradient(nothing, nothing)  # what is slow the first time is not the setting's
    optimizer.zero_grad()
    start, kept_when = state["step"], time.perf_counter()
    every = -(-(until - before) // LOOKS)
    while state["step"] < until and not stop.asked:
        began = time.perf_counter()
        for group in optimizer.param_groups:  # constant after warm-up: how long it lives is open
            group["lr"] = learning_rate(state["step"], values["lr"], WARMUP_STEPS, until, floor=1)
        loss = gradient(*(ids.to(device) for ids in next(batches)))
        scaler.unscale_(optimizer)
        clip_gradients(model, 1.0)
        if not math.isfinite(loss.item()):
            return state | {"reason": f"loss {loss.item()} at step {state['step']}"}
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad()
        synchronize(device)
        state["step"] += 1
        state["seconds"] += time.perf_counter() - began
        if (until - state["step"]) % every == 0:
            with autocast(device, dtype):
                after = evaluate(model, held_out, T).loss
            if not math.isfinite(after):
                return state | {"reason": f"held-out loss {after} at step {state['step']}"}
            state["curve"].append((state["step"], state["seconds"], after))
            look(state["step"], after)
        if time.perf_counter() - kept_when > SECONDS_TO_LOSE:
            save()
            kept_when = time.perf_counter()
    if state["step"] > start:
        save()
    if stop.asked:
        raise KeyboardInterrupt
    return state


def main(options: Options) -> None:
    if options.eval_tokens < 2:
        raise UserError(f"--eval-tokens is {options.eval_tokens}: give 2 or more")
    phases, space = read_phases(options.phases), read_space(options)
    device = pick_device(options.device)
    checkpoint.repeat_exactly(device)
    tokens = open_tokens(options.data)
    for B, T in itertools.product(space["batch_size"], space["block_size"]):
        Batches(tokens.train, B, T)  # complains if the text is too short
    try:
        search = open_search(options, phases, space, fingerprint(tokens))
        total = steps_in_all(phases)
        print(f"{total:,} steps in {len(phases)} phases: {options.phases}")
        with StopSignal() as stop:
            work(search, tokens, options, device, stop)
        with search.alone():
            report(search, options.data)
    except KeyboardInterrupt:
        print("the same command goes on")
        raise
    except StorageInternalError as error:
        reason = str(error.__cause__).split("\n")[0]
        raise UserError(f"{options.out}/study.db can't be written: {reason}") from None


def work(search: Search, tokens: Tokens, options: Options, device, stop: StopSignal) -> None:
    """Train one setting after the other, until no process finds any. Raises KeyboardInterrupt if
    asked to stop."""
    total, at_first, began = steps_in_all(search.phases), search.steps_done(), time.perf_counter()
    losses = []  # all that were looked at
    while not search.finished:
        if stop.asked:
            raise KeyboardInterrupt
        claim = search.claim()
        if claim is None:
            time.sleep(2)  # the rest of this phase is in other hands
            continue
        k, until = claim.phase, search.phases[claim.phase].steps
        before = search.phases[k - 1].steps if k else 0
        print(f"setting {claim.number}: {say(claim.values)}")

        def look(step: int, loss: float, claim=claim, k=k, before=before) -> None:
            search.lives(claim)
            losses.append(loss)
            done = search.steps_done() + step - before  # by all processes
            rate = (time.perf_counter() - began) / (done - at_first)  # seconds a step
            print(f"phase {k + 1}/{len(search.phases)}  setting {claim.number:>3}  "
                  f"step {step:>5}  loss {loss:.4f}  best {min(*losses, search.best()):.4f}  "
                  f"{duration(rate * (total - done))} left")  # fmt: skip

        try:
            state = train(claim, before, until, tokens, options, device, stop, look)
        except KeyboardInterrupt:
            search.lives(claim)
            raise
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
            state = {"reason": "the memory is full"}
        loss = None if "reason" in state else state["curve"][-1][2]
        facts = ("reason", "step", "seconds", "curve")
        search.tell(claim, loss, **{name: state[name] for name in facts if name in state})
        if "reason" in state:
            print(f"setting {claim.number} failed: {state['reason']}")


if __name__ == "__main__":
    run(main, Options)

# To try:
#   python 7_gpt2_search_hyparam.py --data plays --n-embd 128 --out runs/7_plays
#   python 7_gpt2_search_hyparam.py --lr 1e-3 3e-3 --phases 12x100,3x400 --out runs/7_narrow
