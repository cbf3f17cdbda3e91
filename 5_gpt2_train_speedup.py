"""Stage 5: a ladder of speed-ups, each measured here and now.

New here: common/speed.py (what makes a step faster) and common/ladder.py (the table).

    python 5_gpt2_train_speedup.py     # GPT-2 124M, 3 minutes on two CPU cores
    python 5_gpt2_train_speedup.py --batch-size 16 --block-size 1024 --steps 22

The second command is for a GPU. You will see one row per rung, each adding to the ones before: the
median time of a training step, its spread (half the range), the speed-up, peak memory (GB), how far
the first loss is from rung 0's (Δloss), and the validation loss after the last step (val). MFU
(model FLOPs utilization) is the model's FLOP/s as a share of this machine's fastest matrix product
in that precision; papers divide by the data sheet's peak instead. A kernel is one function on the
device; a fused kernel does the work of several. A rung is skipped, with the reason, if the machine
does not support it, it does not fit in memory, or its attention kernel is slower here.

Then comes Hugging Face's model, with the same autocast, compilation and optimizer but its own
attention, vocabulary and residual stream; on Linux CPUs a second time, without our memory allocator
settings (HF untuned). Last comes rung 0 again: drift is how much its time has changed.
"""

import sys
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from multiprocessing import get_context

import torch

from common.data import Batches, load_tokens
from common.evals import evaluate
from common.kit.cli import UserError, duration, run
from common.kit.device import pick_device, release_memory
from common.kit.disk import check_json, run_folder
from common.kit.measure import PeakMemory
from common.ladder import WARMUP_STEPS, Ladder, Rung
from common.model import GPT, GPTConfig
from common.presets import preset
from common.speed import (
    Setting,
    autocast,
    autocast_dtype,
    build,
    flash_attention,
    loss_function,
    why_not,
)


@dataclass
class Options:
    data: str = "tinyshakespeare"  # train on tinyshakespeare, plays, a text file or a folder
    model: str = "gpt2"  # train this preset, or layers x heads x width, as in 4x2x128
    steps: int = 7  # take this many on each rung; the first two warm up and are not timed
    batch_size: int = 4  # B: put this many rows in a batch
    block_size: int = 128  # T: put this many tokens in a row
    eval_tokens: int = 1024  # evaluate on this many validation tokens
    rungs: tuple[int, ...] = (0, 1, 2, 3, 4, 5, 6, 7)  # measure these and 0; each adds to all below
    lr: float = 3e-4  # set the learning rate
    seed: int = 1337  # change it to draw other weights and batches
    out: str = "runs/5_speedup"  # write to this folder
    json: str | None = None  # also write all numbers to this file; by default, to none
    device: str = "auto"  # run on auto, cpu, cuda or mps


def speedups(device: torch.device) -> list[tuple]:
    """The name of each rung, what it changes, and why."""
    return [
        ("fp32", {}, "the model of stage 4"),
        ("TF32", {"tf32": True}, "matrix products with 10-bit mantissas"),
        ("autocast", {"dtype": autocast_dtype(device)}, "16-bit products: half the bytes"),
        ("attention", {"attention": flash_attention}, "no (T, T) matrix in memory"),
        ("vocabulary", {"vocab_multiple": 128}, "50304 = 393 · 128: full tiles"),
        ("compile", {"compile": True}, "fused kernels: less memory traffic"),
        ("fused AdamW", {"fused": True}, "one pass over all weights, not one per operation"),
        ("residual", {"residual": True}, "16 bits from block to block: less memory traffic"),
    ]


def train(
    model: GPT, batches: Batches, val: torch.Tensor, log: Rung, options: Options, setting: Setting
) -> None:
    """Train model on the batches, at the speed of a rung."""
    device = next(model.parameters()).device
    # new: one fused kernel from rung 6 on; before that, None leaves the choice to torch
    optimizer = torch.optim.AdamW(model.parameters(), lr=options.lr, fused=setting.fused or None)
    loss_of = loss_function(model, setting.compile)  # new: compiled into fused kernels
    # new: in fp16 small gradients would be 0, so the loss is scaled up, and scaler.step scales the
    # gradients back down; in fp32 and bf16 the scaler does nothing
    scaler = torch.amp.GradScaler(device.type, enabled=setting.dtype is torch.float16)
    for step in range(options.steps):
        start = time.perf_counter()
        x, y = (ids.to(device) for ids in next(batches))
        with autocast(device, setting.dtype):  # new: 16-bit matrix products
            loss = loss_of(x, y)
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad()
        loss = loss.item()  # waits until the device has finished the step
        ms = (time.perf_counter() - start) * 1000
        log.row(step=step, loss=loss, ms=ms, tokens_per_s=x.numel() / ms * 1000)
    with autocast(device, setting.dtype):  # new: in the same precision as training
        after = evaluate(model, val, options.block_size)
    log.val(options.steps, after.loss)


def measure(name, setting, config, tokens, options, device, hugging_face=False) -> Rung:
    """Build a model, and time its training steps."""
    release_memory()  # never two models in memory at once
    torch.set_float32_matmul_precision("high" if setting.tf32 else "highest")
    model = build(config, setting, options.seed)
    if hugging_face:
        from common.pretrained import HuggingFace  # transformers takes seconds to import

        model = HuggingFace(model)
    batches = Batches(tokens.train, options.batch_size, options.block_size, options.seed)
    val = torch.from_numpy(tokens.val[: options.eval_tokens].astype("int64"))
    rung = Rung(name, str(setting.dtype or torch.float32).removeprefix("torch."))
    memory = PeakMemory(device)
    train(model.to(device).train(), batches, val, rung, options, setting)
    rung.peak_bytes = memory.read()
    return rung


def in_new_process(*arguments, **names) -> Rung:
    """`measure` without pick_device's allocator settings, which speed up their model too."""
    release_memory()  # of this process
    with ProcessPoolExecutor(1, get_context("spawn")) as pool:
        return pool.submit(measure, *arguments, **names).result()


def climb(ladder: Ladder, config: GPTConfig, tokens, options: Options, device) -> None:
    """Measure the rungs one by one, then Hugging Face's model, then the first rung again."""
    fixed = (config, tokens, options, device)
    B, T = options.batch_size, options.block_size
    setting, done = Setting(), []  # done: each measured rung, with its setting
    for k, (name, change, _) in enumerate(speedups(device)[: max(options.rungs) + 1]):
        with ladder.skip_if_full(f"{k} {name}"):
            if reason := why_not(change, setting, config, B, T, device):
                ladder.skip(f"{k} {name}", reason)
                continue
            setting = replace(setting, **change)
            if k == 0 or k in options.rungs:
                rung = measure(f"{k} {name}", setting, *fixed)
                ladder.add(rung, done[-1][0] if done else None)
                if not done:
                    left = (len(options.rungs) + 2) * sum(rung.ms) / 1000
                    left += 60 if max(options.rungs) >= 5 else 0  # to compile
                    print(f"{'':14} at most about {duration(left)} to go")
                if setting.compile and not any(each.compile for _, each in done):
                    print(f"{'':14} the first step, which compiles, took {rung.ms[0] / 1000:.0f} s")
                done.append((rung, setting))
    if not done:
        raise UserError("no rung fits in memory: give a smaller --batch-size or --block-size")
    first, (ours, setting) = done[0][1], done[-1]
    ways = [("Hugging Face", measure), ("HF untuned", in_new_process)] if setting.compile else []
    tuned = device.type == "cpu" and sys.platform == "linux"
    for name, way in ways if tuned else ways[:1]:
        with ladder.skip_if_full(name):
            theirs = way(name, setting, *fixed, hugging_face=True)
            ladder.add(theirs)
            print(f"{'':14} ours takes {ours.median_ms / theirs.median_ms:.2f} of its time")
    ladder.add_last(measure(f"{ladder.rungs[0].name}, again", first, *fixed))


def main(options: Options) -> None:
    if not options.rungs or not set(options.rungs) <= set(range(8)):
        raise UserError(f"--rungs {' '.join(map(str, options.rungs))}: give some of 0 to 7")
    if options.steps <= WARMUP_STEPS:
        raise UserError(f"--steps is {options.steps}: give {WARMUP_STEPS + 1} or more")
    check_json(options.json)
    B, T = options.batch_size, options.block_size
    config, device = preset(options.model, T), pick_device(options.device)
    torch.manual_seed(options.seed)
    tokens = load_tokens(options.data)
    Batches(tokens.train, B, T)  # raises now if the text is too short
    folder = run_folder(options.out)
    print(f"{options.model}, batches of {B} × {T} tokens, {options.steps} steps per rung")
    for k, (name, _, why) in enumerate(speedups(device)):
        print(f"  {k} {name:<11} {why}")
    print()
    ladder = Ladder(config, B, T, device)
    title = f"{options.model}, {B} × {T} tokens"
    with ladder.saved(folder / "ladder.png", options.json, title):
        climb(ladder, config, tokens, options, device)


if __name__ == "__main__":
    run(main, Options)

# To try:
#   python 5_gpt2_train_speedup.py --rungs 0 2            # up to autocast, beside rung 0
#   python 5_gpt2_train_speedup.py --block-size 1024 --batch-size 1
#   python 5_gpt2_train_speedup.py --model gpt-mini --json runs/ladder.json
#   python -m exercises 09 10    # yours to fill in: pad_vocab, mfu
