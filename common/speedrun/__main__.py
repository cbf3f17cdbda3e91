"""The speedrun: what a GPT-2 can learn on this machine in five minutes.

    python -m common.speedrun                 # docs/records.md has the table
    python -m common.speedrun --budget work   # for another machine
    python -m common.speedrun --text nanogpt  # to compare with nanoGPT's README

Text and split are fixed. Five minutes of wall time (for the imports, CPU time) include everything:
tokenization, compilation, training by stage 6's loop, validation, export. The learning rate decays
with the time left. The script prints every 50th step, and the bits per byte of a play that the
model never saw. Different machines compare better by work: training time × the FLOP/s of the
fastest matrix product.
"""

import hashlib
import time
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Literal

import torch

from common.evals import evaluate
from common.kit.cli import UserError, run
from common.kit.corpus import TINY_SHAKESPEARE_PLAYS, read_corpus, render_plays
from common.kit.device import describe, pick_device
from common.kit.disk import run_folder, write_json
from common.kit.measure import matmul_peak
from common.kit.runlog import RunLog
from common.model import GPT
from common.muon import Muon
from common.optim import adamw, learning_rate, parameter_groups, set_lr
from common.presets import preset
from common.pretrained import export
from common.run.batches import RankBatches
from common.run.ranks import Ranks
from common.run.recipes import DEFAULTS, LAPTOP_LENGTH, RECIPES
from common.speed import Setting, autocast, best_setting, build, loss_function
from common.tokenizer import gpt2_tokenizer

COLUMNS = ("step", "loss", "lr", "norm", "ms", "tokens_per_s", "val_loss")
SECONDS = 300.0
WORK = 2.6e14  # FLOPs at the peak: what two cores with AVX512-BF16 can train in that time
RESERVE = 15.0  # seconds for validation and export
WARMUP, END = 200, 10_000  # the schedule's steps, as shares of the time: 2 % are warm-up
# The laptop recipe without its length and evaluations: the last row of docs/records.md.
LAPTOP = RECIPES["laptop"]
RECIPE = {name: LAPTOP[name] for name in LAPTOP if name not in LAPTOP_LENGTH}


@dataclass
class Options:
    budget: Literal["time", "work"] = "time"  # five minutes, or the same FLOPs on any machine
    text: Literal["nine-plays", "nanogpt"] = "nine-plays"  # validate on a play; or the last tenth
    seed: int = 1337  # change it to draw other weights and batches
    out: str = "runs/speedrun"  # write to a subfolder of this folder
    device: str = "auto"  # run on auto, cpu, cuda or mps


def split_text(name: str) -> tuple[str, str]:
    """The training text and the validation text."""
    if name == "nanogpt":
        text = read_corpus("tinyshakespeare").text
        n = int(len(text) * 0.9)
        return text[:n], text[n:]
    *train, val = TINY_SHAKESPEARE_PLAYS.split()
    return render_plays(train), render_plays([val])


def ids_of(text: str, title: str, vocab_size: int) -> torch.Tensor:
    sha256 = hashlib.sha256(text.encode()).hexdigest()
    ids = gpt2_tokenizer(vocab_size).encode_ordinary(text)
    print(f"{title}: {len(text):,} characters, {len(ids):,} tokens, sha256 {sha256[:16]}…")
    return torch.tensor(ids)


def train(model: GPT, batches, log: RunLog, plan, setting: Setting, seconds: float) -> int:
    """Stage 6's loop, for this many seconds. The learning rate follows the time. Returns the number
    of steps."""
    device, step = next(model.parameters()).device, 0
    optimizer = adamw(parameter_groups(model, plan.weight_decay), plan.lr)
    optimizer = Muon(optimizer, model) if plan.optimizer == "muon" else optimizer
    loss_of = loss_function(model, setting.compile)
    scaler = torch.amp.GradScaler(device.type, enabled=setting.dtype is torch.float16)
    begin = time.perf_counter()
    while (share := (time.perf_counter() - begin) / seconds) < 1:
        start = time.perf_counter()
        lr = learning_rate(share * END, plan.lr, WARMUP, END, plan.lr_floor)
        set_lr(optimizer, lr)
        x, y = (ids.to(device) for ids in next(batches))
        with autocast(device, setting.dtype):
            loss = loss_of(x, y)
        scaler.scale(loss).backward()
        scaler.unscale_(optimizer)
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), plan.clip)
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad()
        loss, norm = loss.item(), norm.item()
        ms = (time.perf_counter() - start) * 1000
        row = {"step": step, "loss": loss, "lr": lr, "norm": norm, "ms": ms}
        row["tokens_per_s"] = x.numel() / ms * 1000
        log.write(row) if step % 50 else log.row(**row)  # which prints it, too
        step += 1
    return step


def main(options: Options) -> None:
    start = time.perf_counter() - time.process_time()  # the imports count, by their CPU time
    device = pick_device(options.device)
    torch.manual_seed(options.seed)
    folder = run_folder(f"{options.out}/{options.text}_{options.seed}")
    text, val_text = split_text(options.text)
    plan = SimpleNamespace(**DEFAULTS | RECIPE)
    tokens = ids_of(text, "training text", plan.vocab_size)
    val = ids_of(val_text, "validation text", plan.vocab_size)
    B, T = plan.batch_size, plan.block_size
    config = preset(plan.model, block_size=T, vocab_size=plan.vocab_size)
    setting = best_setting(config, B, T, device, compile=plan.compile)
    peak = matmul_peak(device, setting.dtype or torch.float32)
    model = build(config, setting, options.seed).to(device)
    batches = RankBatches(tokens.numpy(), B, T, options.seed, Ranks(device))
    x, y = (ids.to(device) for ids in batches.batch_at(0))
    with autocast(device, setting.dtype):  # compiles
        loss_function(model, setting.compile)(x, y).backward()
    model.zero_grad()
    used = time.perf_counter() - start
    seconds = WORK / peak if options.budget == "work" else SECONDS - RESERVE - used
    if seconds <= 0:
        raise UserError(
            f"no time is left of the {SECONDS:.0f} s after {used:.0f} s of preparation: "
            "run it again, with the compiled code cached, or give --budget work"
        )
    print(f"peak {peak / 1e12:.2f} TFLOP/s; {seconds:.0f} s to train")
    with RunLog(folder, COLUMNS, 0) as log:
        steps = train(model, batches, log, plan, setting, seconds)
        with autocast(device, setting.dtype):
            found = evaluate(model, val, T, 32, stride=T // 4)
        log.val(steps, found.loss)
    how = {"budget": options.budget, "text": options.text, "seed": options.seed}
    command = " ".join(f"--{name} {value}" for name, value in how.items())
    facts = {"command": f"python -m common.speedrun {command}", "steps": f"{steps:,}"}
    export(model, folder, facts | {"validation": found})
    took = time.perf_counter() - start
    flops = config.flops_per_token(T) * steps * B * T
    work = seconds * peak  # FLOPs
    per_character, mfu = found.loss * found.tokens / len(val_text), flops / work
    result = how | {"bits_per_byte": found.bits_per_byte, "nats_per_character": per_character}
    result |= {"seconds": took, "peak": peak, "mfu": mfu, "machine": describe(device)}
    write_json(folder / "result.json", result | {"steps": steps, "recipe": RECIPE})
    print(f"{took:.0f} s in all, {seconds:.0f} s of training: {work:.2e} FLOPs at the peak")
    epochs = steps * B * T / len(tokens)
    print(f"{steps} steps of {B * T:,} tokens, {epochs:.1f} epochs, MFU {mfu:.0%}")
    if options.budget == "time" and took > SECONDS:
        print(f"more than {SECONDS:.0f} s: this does not count as a record")
    print(f"{found.bits_per_byte:.4f} bits/byte, {per_character:.4f} nats/character")


if __name__ == "__main__":
    run(main, Options)
