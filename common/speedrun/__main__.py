"""The speedrun: what a GPT-2 can learn on this machine in five minutes.

    python -m common.speedrun                 # docs/records.md has the table
    python -m common.speedrun --budget work   # for another machine
    python -m common.speedrun --text nanogpt  # to compare with nanoGPT's README

Text and split are fixed. Five minutes of wall time hold everything: imports, tokens, compilation,
training by stage 6's `train`, validation, export. How many steps fit is measured first. You will
see every 50th step, and the bits per byte of a play that the model never saw. Machines compare
better by work: training time × the FLOP/s of the fastest matrix product.
"""

import hashlib
import importlib
import time
from dataclasses import dataclass, replace
from typing import Literal

import torch

from common.evals import evaluate
from common.kit.cli import UserError
from common.kit.corpus import TINY_SHAKESPEARE_PLAYS, read_corpus, render_plays
from common.kit.device import describe, pick_device, seed_everything
from common.kit.disk import run_folder, write_json
from common.kit.measure import matmul_peak
from common.kit.runlog import RunLog
from common.ladder import WARMUP_STEPS, Rung
from common.model import GPT
from common.presets import preset
from common.pretrained import export
from common.run.batches import RankBatches
from common.speed import autocast, best_setting, build
from common.tokenizer import VOCAB_SIZE, gpt2_tokenizer

SECONDS = 300.0
WORK = 2.3e14  # FLOPs at the peak: what two cores with AVX512-BF16 have for training in that time
RESERVE = 14.0  # seconds for validation and export; and
MARGIN = 0.03  # of the training time, for a machine that slows down
# Stage 6's options, where they differ from its defaults: the last row of docs/records.md.
RECIPE = {
    "model": "4x4x256", "vocab_size": 1024, "block_size": 128, "batch_size": 16,
    "total_batch_tokens": 2048, "lr": 1e-2, "lr_floor": 0.0, "warmup_steps": 50,
    "weight_decay": 1.2, "optimizer": "muon",
}  # fmt: skip


@dataclass
class Options:
    budget: Literal["time", "work"] = "time"  # five minutes, or the same FLOPs on any machine
    text: Literal["nine-plays", "nanogpt"] = "nine-plays"  # hold out a play; or the last tenth
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


def ms_per_step(stage, model: GPT, batches, val, options, setting) -> float:
    """By a trial, which also compiles. The weights are afterwards as before."""
    weights = {name: value.clone() for name, value in model.state_dict().items()}
    trial, short = Rung("trial"), replace(options, steps=WARMUP_STEPS + 20)
    stage.train(model, batches, val[:2], trial, short, setting)
    model.load_state_dict(weights)
    return sum(trial.timed) / len(trial.timed)


def main(options: Options) -> None:
    start = time.perf_counter() - time.process_time()  # the imports count, by their CPU time
    stage = importlib.import_module("6_gpt2_train_hyparam")
    device = pick_device(options.device)
    seed_everything(options.seed)
    folder = run_folder(options.out)
    text, val_text = split_text(options.text)
    tokens, val = ids_of(text, "training text"), ids_of(val_text, "validation text")
    plan = stage.Options(**RECIPE, seed=options.seed, out=options.out, device=options.device)
    B, T = plan.batch_size, plan.block_size
    config = preset(plan.model, T, block_size=T, vocab_size=plan.vocab_size)
    setting = best_setting(config, B, T, device, compile=plan.compile)
    peak = matmul_peak(device, setting.dtype or torch.float32)
    model = build(config, setting, options.seed).to(device)
    batches = RankBatches(tokens.numpy(), B, T, options.seed)
    ms = ms_per_step(stage, model, batches, val, plan, setting)
    left = SECONDS - RESERVE - (time.perf_counter() - start)
    if options.budget == "work":
        left = WORK / peak
    plan.steps = int(left * (1 - MARGIN) / ms * 1000)
    if plan.steps <= plan.warmup_steps:
        raise UserError(f"{plan.steps} steps of {ms:.0f} ms fit the {left:.0f} s that are left: "
                        "this machine needs --budget work")  # fmt: skip
    epochs = plan.steps * plan.total_batch_tokens / len(tokens)
    print(f"peak {peak / 1e12:.2f} TFLOP/s, {ms:.1f} ms a step: {plan.steps} steps in "
          f"{left:.0f} s, {epochs:.1f} epochs")  # fmt: skip
    batches = RankBatches(tokens.numpy(), B, T, options.seed)
    with SparseLog(folder, stage.COLUMNS, plan.steps, stage.PANELS) as log:
        stage.train(model, batches, val, log, plan, setting)
    trained = sum(float(row["ms"]) for row in log.rows() if row["ms"]) / 1000
    with autocast(device, setting.dtype):
        found = evaluate(model, val, T, 32, stride=T // 4)
    command = f"python -m common.speedrun --text {options.text} --seed {options.seed}"
    export(model, folder, {"command": command, "validation": found})
    took = time.perf_counter() - start
    flops = config.flops_per_token(T) * plan.steps * plan.total_batch_tokens
    result = {
        "seed": options.seed, "bits_per_byte": found.bits_per_byte,
        "nats_per_character": found.loss * found.tokens / len(val_text),
        "seconds": took, "peak": peak, "mfu": flops / trained / peak,
        "machine": describe(device), "steps": plan.steps, "recipe": RECIPE,
    }  # fmt: skip
    write_json(folder / "result.json", result)
    print(f"{took:.0f} s in all, {trained:.0f} s of training: {trained * peak:.2e} FLOPs at the "
          f"peak, of which it reached {result['mfu']:.0%}")  # fmt: skip
    if options.budget == "time" and took > SECONDS:
        print(f"more than {SECONDS:.0f} s: it does not count as a record")
    print("{bits_per_byte:.4f} bits/byte, {nats_per_character:.4f} nats/character".format(**result))
