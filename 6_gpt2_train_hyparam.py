"""Stage 6: GPT-3's hyper-parameters, and a run that loses nothing.

New here: common/optim.py (what decays, AdamW, the learning rate), common/distributed.py (many
processes; of which Ranks.exchanging is the heart) and common/checkpoint.py (stop and go on, to the
bit); with common/recipes.py (GPT-3's sizes), common/start.py (how a run begins), common/disk.py
(files that are whole or absent), common/tokenfiles.py (text too large for memory) and
common/stepbench.py (what --bench prints).

    python 6_gpt2_train_hyparam.py                        # no GPU: a small GPT, 5 minutes
    python 6_gpt2_train_hyparam.py --resume               # go on where it stopped
    torchrun --standalone --nproc_per_node=8 6_gpt2_train_hyparam.py --recipe gpt3-125m --data …

Options that you leave out are the recipe's, or those of the run that goes on. You will see them
all, then a line a step: the loss over the whole batch, the learning rate, the gradient's norm, the
step's time and its share of the matmul peak (MFU); every --eval-every steps the held-out loss and a
sample. On tiny Shakespeare the default takes it from 10.8 to about 5, and the samples come to look
like a play. Ctrl-C or SIGTERM: the step is finished and kept. The run's folder holds metrics.csv,
metrics.png, checkpoints, and at the end hf/, which stage 1 evaluates:

    python 1_gpt2_hf_eval.py --model runs/6_hyparam/hf
"""

import math
import time
from dataclasses import dataclass, replace
from pathlib import Path
from textwrap import fill
from typing import Literal

import torch
import torch.distributed as dist

from common import checkpoint
from common.bench import matmul_peak
from common.cli import UserError, duration, quoted, run
from common.data import Batches
from common.device import seed_everything
from common.distributed import Ranks, StopSignal, all_ranks
from common.evals import evaluate
from common.generate import generate
from common.hellaswag import ask_both_ways, read_questions
from common.optim import adamw, clip_gradients, learning_rate, parameter_groups, print_groups
from common.recipes import resolve, run_config
from common.runlog import RunLog
from common.speed import Loss, autocast, compiled
from common.start import fingerprint, first_model, go_on, open_run, prepare
from common.stepbench import bench
from common.tokenfiles import Ahead, open_tokens
from common.tokenizer import VOCAB_SIZE, gpt2_tokenizer


@dataclass
class Options:
    recipe: str | None = None  # laptop, gpt2-124m, gpt3-125m … gpt3-13b, or a TOML file of options
    data: str | None = None  # tinyshakespeare, plays, a text file, a folder of those or of shards
    model: str | None = None  # a preset
    init_from: str | None = None  # in its place: pretrained weights, a Hub name or a folder
    batch_size: int | None = None  # B, rows in a micro-batch
    block_size: int | None = None  # T, tokens in a row
    total_batch_tokens: int | None = None  # tokens in a batch: B · T · ranks · accumulation
    steps: int | None = None  # the length of the schedule
    stop_at: int | None = None  # end at this step, the schedule unchanged
    lr: float | None = None  # the learning rate at its highest
    warmup_steps: int | None = None  # GPT-3's 375 million tokens, at most a tenth of the steps
    weight_decay: float | None = None  # of matrices and embeddings
    clip: float | None = None  # the gradient's norm at most
    dropout: float | None = None
    dtype: Literal["float32", "bfloat16", "float16"] | None = None  # what the device does natively
    attention: Literal["formula", "flash"] | None = None  # what a trial shows to be faster
    compile: Literal["yes", "no"] | None = None  # yes where it works
    eval_every: int | None = None  # steps between evaluations
    eval_tokens: int | None = None  # held-out tokens, at most
    eval_hellaswag: bool = False  # ask HellaSwag's questions too
    hellaswag_file: str | None = None  # a copy of hellaswag_val.jsonl, not to download it
    hellaswag_most: int | None = None  # only so many questions
    checkpoint_every: int | None = None  # steps between checkpoints
    keep: int | None = None  # checkpoints kept
    prompt: str | None = None  # what a sample goes on from
    seed: int | None = None
    out: str = "runs/6_hyparam"  # the run's folder
    resume: bool = False  # go on with the run in that folder
    bench: bool = False  # measure AdamW and accumulation instead of training
    shard: bool = False  # slices of the model on each rank (FSDP2), not the whole (DDP)
    tensorboard: bool = False  # log for TensorBoard too
    device: str = "auto"  # auto, cpu, cuda or mps


COLUMNS = ("step", "loss", "lr", "norm", "ms", "tokens_per_s", "mfu", "held_out", "bits_per_byte",
           "hellaswag_by_character", "hellaswag_by_token")  # fmt: skip
SAMPLE_TOKENS = 80
MOST_SKIPPED = 25  # steps in a row: by then a gradient scaler of 2**16 has come down to 1 / 512
PANELS = {"lr": "learning rate", "norm": "gradient norm", "ms": "ms a step"}


def mean_gradient(module, batches, n_micro, scaler, dtype, ranks) -> torch.Tensor:
    """Leave in .grad the mean gradient over n_micro micro-batches of every rank. Returns the sum of
    this rank's losses, a scalar on the device."""
    total = torch.zeros((), device=ranks.device)
    for micro in range(n_micro):
        x, y = (ids.to(ranks.device, non_blocking=True) for ids in next(batches))
        with ranks.exchanging(module, now=micro == n_micro - 1):
            with autocast(ranks.device, dtype):
                loss = module(x, y)
            scaler.scale(loss / n_micro).backward()
        total += loss.detach()
    return total


def main(options: Options) -> None:
    with all_ranks(options.device) as ranks:
        train(options, ranks)


def train(options: Options, ranks: Ranks) -> None:
    device, folder = ranks.device, Path(options.out)
    if options.shard and not dist.is_initialized():
        raise UserError("--shard spreads a model over ranks: start it with torchrun")
    saved = None if options.bench else ranks.from_main(lambda: open_run(options))
    options = ranks.from_main(lambda: resolve(options, saved and saved["config"], ranks))
    resolved = ", ".join(f"{k}={v!r}" for k, v in run_config(options).items() if v is not None)
    print(fill(f"options: {resolved}", 79, subsequent_indent="  "))
    dtype = None if options.dtype == "float32" else getattr(torch, options.dtype)
    B, T, last = options.batch_size, options.block_size, options.stop_at or options.steps
    n_micro = options.total_batch_tokens // (B * T * ranks.world_size)

    with ranks.first():
        tokens, questions = open_tokens(options.data), None
        if options.eval_hellaswag or options.hellaswag_file:
            questions = read_questions(options.hellaswag_file, options.hellaswag_most)
    text = fingerprint(tokens)
    held_out = torch.from_numpy(tokens.held_out[: options.eval_tokens].astype("int64"))
    stream = Batches(tokens.train, B, T, options.seed, ranks.rank, ranks.world_size)
    batches = Ahead(stream, pin=device.type == "cuda")
    model = first_model(options, saved, ranks).train()
    module = Loss(model)
    if options.compile == "yes":
        module = compiled(module)  # model stays eager: for evaluation and samples
    if not options.shard:
        module = ranks.replicate(module)
    checkpoint.repeat_exactly(device)
    flops = replace(model.config, vocab_size=VOCAB_SIZE).flops_per_token(T)  # padding is no work
    scaler = torch.amp.GradScaler(device.type, enabled=dtype is torch.float16)
    if options.bench:
        gradient = lambda n: mean_gradient(module, batches, n, scaler, dtype, ranks)  # noqa: E731
        return bench(options, model, ranks, flops, gradient, batches)

    peak = ranks.sum(matmul_peak(device, dtype or torch.float32))
    seed_everything(options.seed + ranks.rank)

    optimizer = adamw(parameter_groups(model, options.weight_decay), options.lr)
    print_groups(optimizer)
    state = {"step": 0, "skipped": 0, "in_a_row": 0}
    if saved and "state" in saved:
        state = go_on(saved, text, model, optimizer, scaler, batches, ranks)
    first, skipped, in_a_row = state["step"], state["skipped"], state["in_a_row"]
    if first > last:
        raise UserError(f"the run is at step {first} already: give a --stop-at or --steps of more")
    lock = prepare(options, model) if ranks.is_main else None  # noqa: F841, held to the end

    def report(step: int) -> None:
        """The held-out loss, over the same tokens on any number of ranks, and a sample."""
        share = {"rank": ranks.rank, "world_size": ranks.world_size, "sum_over_ranks": ranks.sum}
        with autocast(device, dtype):
            after = evaluate(model, held_out, T, B, **share)
            scores = [""] * 2  # no number
            if questions:
                how = share | {"batch_size": B, "progress": ranks.is_main}
                scores = ask_both_ways(model, questions, **how)
            ids = torch.tensor([gpt2_tokenizer().encode_ordinary(options.prompt)], device=device)
            sample = generate(model, ids, SAMPLE_TOKENS, 0.8, top_k=50, seed=options.seed)[0]
        log.held_out(step, after.loss, bits_per_byte=after.bits_per_byte,
                     hellaswag_by_character=scores[0], hellaswag_by_token=scores[1])  # fmt: skip
        print(f"step {step:>4}  held out: loss {after.loss:.4f}, perplexity "
              f"{after.perplexity:,.1f}, {after.bits_per_byte:.4f} bits per byte")  # fmt: skip
        print(quoted(gpt2_tokenizer().decode(sample.tolist())))
        log.draw()

    epochs = options.steps * options.total_batch_tokens / len(tokens.train)
    print(f"from step {first} to {last} of {options.steps}, {epochs:.3g} times through the text")
    print(f"  {options.total_batch_tokens:,} tokens a step: {B} × {T} a micro-batch, "
          f"× {n_micro} accumulated, × {ranks.world_size} ranks")  # fmt: skip
    out = folder if ranks.is_main else None
    log = RunLog(out, *COLUMNS, panels=PANELS, resume_at=first, tensorboard=options.tensorboard)
    with StopSignal() as stop, log:
        for step in range(first, last):
            if step % options.eval_every == 0:
                report(step)
            began = time.perf_counter()
            lr = learning_rate(step, options.lr, options.warmup_steps, options.steps)
            for group in optimizer.param_groups:
                group["lr"] = lr
            total = mean_gradient(module, batches, n_micro, scaler, dtype, ranks)
            scaler.unscale_(optimizer)
            norm = clip_gradients(model, options.clip)
            # The one wait for the device in a step: what is logged, and whether anybody was asked
            # to stop, so that all ranks do.
            asked = torch.full((), float(stop.asked), device=device)
            numbers = torch.stack((total, asked, norm))
            ranks.sum_(numbers[:2])
            total, stopping, norm = numbers.tolist()
            loss = total / (n_micro * ranks.world_size)
            if not math.isfinite(loss + (0 if scaler.is_enabled() else norm)):
                how = "--resume" if (folder / "checkpoints").exists() else "start another run"
                raise UserError(f"step {step}: loss {loss}, gradient norm {norm}; the weights are "
                                f"as they were before it: {how} with a lower --lr, longer "
                                "--warmup-steps or lower --clip")  # fmt: skip
            in_a_row = 0 if math.isfinite(norm) else in_a_row + 1
            skipped += in_a_row > 0
            if in_a_row > MOST_SKIPPED:
                raise UserError(f"step {step}: gradients beyond fp16 {in_a_row} times in a row: "
                                "--resume with --dtype float32 or a lower --lr")  # fmt: skip
            scaler.step(optimizer)  # under fp16, skips a step of infinite gradients
            scaler.update()
            optimizer.zero_grad()
            seconds = time.perf_counter() - began
            rate = options.total_batch_tokens / seconds
            log.row(step=step, loss=loss, lr=lr, norm=norm, ms=seconds * 1000,
                    tokens_per_s=rate, mfu=flops * rate / peak)  # fmt: skip
            done = step + 1
            if done in (first + 5, first + 50):  # by then the first steps' compiling is behind
                print(f"about {duration((last - done) * seconds)} to go")
            if stopping or done == last or done % options.checkpoint_every == 0:
                state = {"step": done, "skipped": skipped, "in_a_row": in_a_row, "text": text,
                         "data": batches.state(), "scaler": scaler.state_dict()}  # fmt: skip
                texts = {"state": state, "config": run_config(options)}
                log.sync()
                path = checkpoint.save(folder, texts, model, optimizer, options.keep, ranks)
                print(f"kept: {path}")
            if stopping:
                print(f"stopped after step {step}: --resume goes on")
                return
        report(last)
        if skipped:
            print(f"steps skipped by the gradient scaler: {skipped}")
        checkpoint.export(folder, model, ranks)


if __name__ == "__main__":
    run(main, Options)

# To try:
#   python 6_gpt2_train_hyparam.py --steps 40 --out runs/short && python 1_gpt2_hf_eval.py \
#       --model runs/short/hf --prompt "ROMEO:"
#   torchrun --standalone --nproc_per_node=2 6_gpt2_train_hyparam.py --out runs/two
#   python 6_gpt2_train_hyparam.py --recipe gpt2-124m --batch-size 4 --block-size 256 --bench
