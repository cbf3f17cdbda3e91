"""The speedrun: what a GPT-2 can learn on this machine in five minutes.

    python -m common.speedrun                 # docs/records.md has the table
    python -m common.speedrun --budget work   # as many FLOPs as the record's machine had
    python -m common.speedrun --text nanogpt  # to compare with nanoGPT's README

Text and split are fixed. Five minutes of wall time hold everything: imports, tokens, compilation,
training by stage 6's `train`, validation, export. How many steps fit is measured first. You will
see every 50th step, the bits per byte of a play that the model never saw, and a line for the
table. On another machine the FLOPs compare better: time × the fastest matrix product.
"""

import hashlib
import importlib
import time
from dataclasses import dataclass, replace
from typing import Literal

import torch

from common.data import Batches
from common.evals import evaluate
from common.kit.cli import UserError, duration, run
from common.kit.corpus import TINY_SHAKESPEARE_PLAYS, read_corpus, render_plays
from common.kit.device import describe, pick_device, seed_everything
from common.kit.disk import run_folder, write_json
from common.kit.measure import matmul_peak
from common.kit.runlog import RunLog
from common.ladder import WARMUP_STEPS, Rung
from common.model import GPT
from common.presets import preset
from common.pretrained import export
from common.speed import autocast, best_setting, build
from common.tokenizer import VOCAB_SIZE, gpt2_tokenizer

SECONDS = 300.0
WORK = 2.7e14  # FLOPs: what the record's machine computes in that time, if all are matrix products
RESERVE = 12.0  # seconds for validation and export; and
MARGIN = 0.03  # of the training time, for a machine that slows down
# Stage 6's options, where they differ from its defaults: the last row of docs/records.md.
RECIPE = {
    "model": "4x4x256", "vocab_size": 1024, "block_size": 128, "batch_size": 16,
    "total_batch_tokens": 2048, "lr": 1e-2, "weight_decay": 0.4, "optimizer": "muon",
}  # fmt: skip


@dataclass
class Options:
    budget: Literal["time", "work"] = "time"  # five minutes, or the same FLOPs on any machine
    text: Literal["plays", "nanogpt"] = "plays"  # hold out a play, or as nanoGPT the last tenth
    seed: int = 1337  # draw other weights and batches
    out: str = "runs/speedrun"  # write to this folder
    device: str = "auto"  # run on auto, cpu, cuda or mps


class SparseLog(RunLog):
    """Prints every 50th step. All are written."""

    def row(self, step: int, **values) -> None:
        if step % 50 == 0 or step == self.steps - 1:
            super().row(step, **values)
        else:
            self.write({"step": step} | values)


def split_text(name: str) -> tuple[str, str]:
    """The text to train on, and the text to predict."""
    if name == "nanogpt":
        text = read_corpus("tinyshakespeare").text
        n = int(len(text) * 0.9)
        return text[:n], text[n:]
    *train, val = TINY_SHAKESPEARE_PLAYS
    return render_plays(train), render_plays([val])


def ids_of(text: str, title: str) -> torch.Tensor:
    sha256 = hashlib.sha256(text.encode()).hexdigest()
    ids = gpt2_tokenizer(RECIPE.get("vocab_size", VOCAB_SIZE)).encode_ordinary(text)
    print(f"{title}: {len(text):,} characters, {len(ids):,} tokens, sha256 {sha256[:16]}…")
    return torch.tensor(ids)


def steps_that_fit(stage, model: GPT, batches, val, options, setting, seconds: float) -> int:
    """How many steps a budget holds, by a trial, which compiles; the weights are as before it."""
    weights = {name: value.clone() for name, value in model.state_dict().items()}
    trial, start = Rung("trial"), time.perf_counter()
    short = replace(options, steps=WARMUP_STEPS + 20)
    stage.train(model, batches, val[:2], trial, short, setting)
    model.load_state_dict(weights)
    left = seconds - (time.perf_counter() - start)
    ms = sum(trial.timed) / len(trial.timed)
    steps = int(left * (1 - MARGIN) / ms * 1000)
    print(f"the trial, which compiles, took {seconds - left:.0f} s; a step takes {ms:.1f} ms")
    if steps < 1:
        raise UserError("no step fits the time: this machine is too slow for the recipe")
    return steps


def main(options: Options) -> None:
    start = time.perf_counter() - time.process_time()  # the imports count, too
    stage = importlib.import_module("6_gpt2_train_hyparam")
    device = pick_device(options.device)
    seed_everything(options.seed)
    folder = run_folder(options.out)
    text, val_text = split_text(options.text)
    tokens, val = ids_of(text, "training text"), ids_of(val_text, "validation text")
    plan = stage.Options(**RECIPE, seed=options.seed, out=options.out, device=options.device)
    B, T = plan.batch_size, plan.block_size
    config = preset(plan.model, T, block_size=T, vocab_size=plan.vocab_size)
    setting = best_setting(config, B, T, device)
    peak = matmul_peak(device, setting.dtype or torch.float32)
    seconds = WORK / peak if options.budget == "work" else SECONDS
    print(f"peak {peak / 1e12:.2f} TFLOP/s: {duration(seconds)} are {seconds * peak:.1e} FLOPs")
    model = build(config, setting, options.seed).to(device)
    batches = Batches(tokens.numpy(), B, T, options.seed)
    used = time.perf_counter() - start
    fixed = (model, batches, val)
    plan.steps = steps_that_fit(stage, *fixed, plan, setting, seconds - RESERVE - used)
    batches = Batches(tokens.numpy(), B, T, options.seed)
    print(f"{plan.steps} steps of {plan.total_batch_tokens:,} tokens, "
          f"{plan.steps * plan.total_batch_tokens / len(tokens):.1f} epochs")  # fmt: skip
    trained = time.perf_counter()
    with SparseLog(folder, stage.COLUMNS, plan.steps, stage.PANELS) as log:
        stage.train(model, batches, val[:2], log, plan, setting)
    trained = time.perf_counter() - trained
    with autocast(device, setting.dtype):
        found = evaluate(model, val, T, 32, stride=T // 4)
    export(model, folder, {"data": f"speedrun: {options.text}", "validation": found})
    took = time.perf_counter() - start
    flops = config.flops_per_token(T) * plan.steps * plan.total_batch_tokens
    nats = found.loss * found.tokens / len(val_text)
    result = {
        "seed": options.seed, "bits_per_byte": found.bits_per_byte, "nats_per_character": nats,
        "seconds": took, "flops": took * peak, "mfu": flops / trained / peak,
        "machine": describe(device), "steps": plan.steps, "recipe": RECIPE,
    }  # fmt: skip
    write_json(folder / "result.json", result)
    over = "" if took <= seconds else f", over the budget of {seconds:.0f} s: it does not count"
    print(f"{took:.0f} s, {took * peak:.2e} FLOPs, {result['mfu']:.0%} of the peak{over}")
    print(f"{found.bits_per_byte:.4f} bits/byte, {nats:.4f} nats/character")


if __name__ == "__main__":
    run(main, Options)
