"""Stage 5: the ladder. Each speed-up, measured here and now.

New here: common/speed.py (what makes a step faster) and common/bench.py (how that is measured).

    python 5_gpt2_train_speedup.py                                       # GPT-2 124M, real batches
    python 5_gpt2_train_speedup.py --batch-size 4 --block-size 256 --upto 3

You will see a row a rung, each on top of the ones before: the median time of a whole training step
(forward, backward, clip, AdamW), what it gained, its share of the fastest matrix product this
machine does in that precision (MFU), the memory at its fullest, and how far the rung's first loss
is from rung 0's on the same batch. A rung that your machine lacks, or that a trial shows to be
slower on it, is skipped with the reason. Rows differ in the model alone: clipping and fused AdamW
are the same in all, rung 0 too. Then Hugging Face's model in its fastest ordinary setting, and
rung 0 again, for the drift.
"""

import json
import os
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch

from common.bench import Ladder, PeakMemory, Row, attention_gain, draw_ladder, timed
from common.cli import UserError, duration, run
from common.data import Batches, load_tokens
from common.device import describe, pick_device, release_memory, seed_everything
from common.init import init_weights, tie_weights
from common.model import GPT, GPTConfig, causal_attention, preset
from common.pretrained import as_hugging_face
from common.runlog import run_folder
from common.speed import (
    autocast,
    autocast_dtype,
    compiled,
    flash_attention,
    pad_vocab,
    why_not_compile,
    why_not_tf32,
)


@dataclass(frozen=True)
class Setting:
    """Everything the rungs change. As it stands: fp32, as stage 4 left it."""

    tf32: bool = False
    autocast: bool = False
    attention: Callable = causal_attention
    vocab_multiple: int = 1
    compiled: bool = False


# name, what changes, why, and the gain that others published: RTX 3080 laptop, A100
RUNGS = [
    ("fp32", {}, "the model of stage 4", "–", "–"),
    ("TF32", {"tf32": True}, "products with 10 bits of mantissa", "–", "3.0×"),
    ("autocast", {"autocast": True}, "products of 16 bits, half the bytes", "2.3×·1.05×", "1.11×"),
    ("attention", {"attention": flash_attention}, "no (T, T) matrix in memory", "1.4×", "1.35×"),
    ("vocabulary", {"vocab_multiple": 128}, "50304 = 393 · 128: whole tiles", "1.04×", "1.03×"),
    ("compile", {"compiled": True}, "fused kernels, fewer trips to memory", "–", "2.3×"),
]


@dataclass
class Options:
    data: str = "tinyshakespeare"  # also: plays, a text file, a folder of them, a .npy file of ids
    model: str = "gpt2"  # a preset
    batch_size: int | None = None  # B, rows in a batch; default 4 on a CPU, up to 16 on a GPU
    block_size: int | None = None  # T, tokens in a row; default 128 on a CPU, 1024 on a GPU
    steps: int | None = None  # timed steps a rung; default 5 on a CPU, 20 on a GPU
    upto: int = len(RUNGS) - 1  # the last rung
    only: int | None = None  # this rung alone, with all before it switched on
    lr: float = 3e-4
    seed: int = 1337
    out: str = "runs/5_speedup"  # the run's folder
    json: str | None = None  # also write all numbers into this file
    device: str = "auto"  # auto, cpu, cuda or mps


def why_not(change: dict, setting: Setting, shape, config: GPTConfig, device) -> str | None:
    """The reason why a rung is not for this machine, or None: what it lacks is asked, what may be
    slower is tried."""
    if "tf32" in change:
        return why_not_tf32(device)
    if "autocast" in change and autocast_dtype(device) is None:
        return "this CPU has no AVX512-BF16, AMX or ARM bf16"
    if "attention" in change:
        (B, T), nh = shape, config.n_head
        dtype = autocast_dtype(device) if setting.autocast else torch.float32
        gain = attention_gain((B, nh, T, config.n_embd // nh), dtype, device)
        return f"measured, it takes {1 / gain:.1f} × as long here" if gain < 0.9 else None
    return why_not_compile(device) if "compiled" in change else None


def build(config: GPTConfig, setting: Setting, seed: int) -> GPT:
    """Stage 4's model, the same weights at every rung, as the setting wants it."""
    model = tie_weights(GPT(replace(config, attention=setting.attention)))
    return pad_vocab(init_weights(model, seed), setting.vocab_multiple)


def time_steps(name, model, loss_of, batches, setting, device, lr) -> Row:
    """Whole training steps, one a batch; the first (which compiles) and the second don't count."""
    torch.set_float32_matmul_precision("high" if setting.tf32 else "highest")
    dtype = autocast_dtype(device) if setting.autocast else None
    model.to(device).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=lr, fused=True)
    scaler = torch.amp.GradScaler(device.type, enabled=dtype is torch.float16)
    memory = PeakMemory(device)

    def step(x, y):
        with autocast(device, dtype):
            loss = loss_of(x, y)
        scaler.scale(loss).backward()
        scaler.unscale_(optimizer)
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad()
        return loss.detach()

    steps = [timed(lambda x=x, y=y: step(x, y), device) for x, y in batches]
    seconds, losses = zip(*steps, strict=True)
    name_of_dtype = str(dtype or torch.float32).removeprefix("torch.")
    return Row(name, list(seconds[2:]), losses[0].item(), name_of_dtype, seconds[0], memory.read())


def measure(name, config, setting, batches, device, options, hugging_face=False) -> Row:
    """One model, built, timed, and gone when this returns."""
    model = build(config, setting, options.seed)
    if hugging_face:
        model = as_hugging_face(model)

        def loss_of(x, y):  # the same windows: y is already one token later
            return model(x, labels=y, shift_labels=y, use_cache=False).loss
    else:

        def loss_of(x, y):
            return model(x, y)[1]

    # The model stays as it is, eager, for evaluation, sampling and saving.
    loss_of = compiled(loss_of) if setting.compiled else loss_of
    return time_steps(name, model, loss_of, batches, setting, device, options.lr)


def climb(ladder: Ladder, config: GPTConfig, batches, device, options: Options) -> None:
    def timed_row(name, setting, previous=None, **kind):
        row = measure(name, config, setting, batches, device, options, **kind)
        release_memory()  # never two models at once
        ladder.add(row, previous)
        if setting.compiled:
            print(f"{'':17} compiling, or finding it cached: {row.first_step:.0f} s, not counted")
        return row

    setting, previous = Setting(), None
    for k, (name, change, *_) in enumerate(RUNGS[: options.upto + 1]):
        name, tried = f"{k} {name}", replace(setting, **change)
        reason = why_not(change, setting, batches[0][0].shape, config, device)
        if reason:
            ladder.skip(name, reason)
            continue
        setting = tried
        if k == 0 or options.only in (None, k):
            row = timed_row(name, setting, previous if options.only is None else None)
            if k == 0:
                rows = 1 if options.only == 0 else 2 if options.only else options.upto + 2
                left = rows * len(batches) * row.ms / 1000 + 60
                print(f"{'':17} about {duration(left)} to go, less where rungs are skipped")
            previous = row
    if options.only is None and options.upto == len(RUNGS) - 1:
        theirs = timed_row("Hugging Face", setting, hugging_face=True)
        print(f"{'':17} ours takes {previous.ms / theirs.ms:.2f} of its time")
    again = timed_row("0 fp32, again", Setting())
    print(f"{'':17} drift: the same work takes {again.ms / ladder.rows[0].ms:.2f} of the time")
    reason = ladder.why_not_believe()
    if reason:
        print(f"not to be believed, the machine was busy: {reason}")


def keep(ladder: Ladder, folder: Path, options: Options, title: str) -> None:
    """Leave the picture, and the numbers where they were asked for."""
    if not ladder.rows:
        return
    draw_ladder(folder / "ladder.png", ladder.rows, title)
    print(f"kept: {folder}/ladder.png")
    if options.json:
        rows = [asdict(row) for row in ladder.rows]
        peaks = {f"{dtype}, {mode}": rate for (dtype, mode), rate in ladder.peaks.items()}
        result = {"title": title, "options": asdict(options), "peaks": peaks, "rows": rows}
        Path(options.json).write_text(json.dumps(result, indent=1) + "\n")


def rows_that_fit(device: torch.device) -> int:
    """A default batch for a GPU: a row of 1024 tokens takes GPT-2 124M some 2.5 GB at rung 0, most
    of them (T, T) scores, on top of 3 GB. Apple's GPUs are taken to have 8 GB."""
    memory = torch.cuda.mem_get_info(device)[1] if device.type == "cuda" else 8 * 2**30
    return next((B for B in (16, 8, 4, 2) if 2.5e9 * B + 3e9 <= memory), 1)


def main(options: Options) -> None:
    last = len(RUNGS) - 1
    for option in ("upto", "only"):
        if not 0 <= (getattr(options, option) or 0) <= last:
            raise UserError(f"--{option} {getattr(options, option)} is no rung: give 0 to {last}")
    if (options.only or 0) > options.upto:
        raise UserError(f"--only {options.only} is beyond --upto {options.upto}: leave one out")
    json_file = Path(options.json or "ladder.json")
    if json_file.is_dir() or not os.access(json_file.parent, os.W_OK):
        raise UserError(f"--json {options.json} can't be written: give a file in a folder of yours")
    device = pick_device(options.device)
    on_cpu = device.type == "cpu"
    T = options.block_size or (128 if on_cpu else 1024)
    B = options.batch_size or (4 if on_cpu else rows_that_fit(device))
    n_steps = options.steps or (5 if on_cpu else 20)
    config = preset(options.model, T)
    seed_everything(options.seed)
    stream = Batches(load_tokens(options.data).train, B, T, options.seed)
    batches = [tuple(t.to(device) for t in next(stream)) for _ in range(n_steps + 2)]
    folder = run_folder(options.out)
    (folder / "ladder.png").unlink(missing_ok=True)  # it would show another run
    title = f"{options.model}, {B} × {T} tokens, {describe(device)}"
    print(f"{options.model}, batches of {B} × {T} tokens, {n_steps} timed steps a rung")
    for k, (name, _, why, *_) in enumerate(RUNGS):
        print(f"  {k} {name:<11} {why}")
    print()
    ladder = Ladder(config, B, T, device)
    try:
        climb(ladder, config, batches, device, options)
    finally:
        keep(ladder, folder, options, title)
    print("\npublished by others, times the rung before: RTX 3080 laptop (3.5× in all); A100")
    for name, _, _, laptop, a100 in RUNGS[1:]:
        print(f"  {name:<11}{laptop:>12}{a100:>8}")


if __name__ == "__main__":
    run(main, Options)

# To try:
#   python 5_gpt2_train_speedup.py --only 2                # autocast alone, beside rung 0
#   python 5_gpt2_train_speedup.py --block-size 1024 --batch-size 1
#   python 5_gpt2_train_speedup.py --model gpt-mini --json ladder.json
