"""Stage 7: a long run, on many devices, that can be interrupted. The trainer to keep.

New here: common/muon.py (a faster optimizer), and in common/run/: ranks.py (many processes),
checkpoint.py and resume.py (interrupt a run and resume it). Skim the rest: recipes.py, batches.py,
tokenfiles.py, signals.py, log.py, evals.py. The loop is stage 6's; `# new:` marks what it adds.

    python 7_gpt2_train_long_run.py              # 5 minutes on two CPU cores
    python 7_gpt2_train_long_run.py --resume     # after Ctrl-C or a crash
    torchrun --standalone --nproc_per_node=8 7_gpt2_train_long_run.py \\
        --recipe gpt3-125m --data FOLDER

Options that you leave out come from the recipe, or from the run that is resumed. The script prints
all options, then one line per step, with its speed as a share of the fastest matrix product's
(MFU), and every --eval-every steps the validation loss and a sample. Bits per byte fall from 4.88
to 2.31. On Ctrl-C or SIGTERM, the script finishes the step and saves a checkpoint. The folder --out
holds metrics.csv, metrics.png, checkpoints, and at the end hf/, which stage 1 reads.
"""

import time
from dataclasses import dataclass, replace
from textwrap import fill
from typing import Literal

import torch
import torch.distributed as dist

from common.generate import generate
from common.hellaswag import WORDINGS, print_scores, read_questions
from common.kit import cli
from common.kit.cli import UserError, quoted
from common.kit.device import repeat_exactly
from common.kit.measure import matmul_peak
from common.model import GPT
from common.muon import Muon
from common.optim import adamw, learning_rate, parameter_groups, set_lr
from common.run.batches import RankBatches
from common.run.evals import evaluate_on_ranks, hellaswag_on_ranks
from common.run.log import LongRunLog
from common.run.ranks import all_ranks
from common.run.recipes import resolve, run_config
from common.run.resume import Run, fingerprint
from common.run.signals import StopSignal
from common.run.tokenfiles import open_tokens
from common.speed import Setting, autocast, setting_of
from common.tokenizer import gpt2_tokenizer

OF_A_STEP = ("step", "loss", "lr", "norm", "ms", "tokens_per_s", "mfu")
HELLASWAG = ("hellaswag_by_character", "hellaswag_by_token")
COLUMNS = (*OF_A_STEP, "val_loss", "bits_per_byte", *HELLASWAG)


@dataclass
class Options:
    # run
    recipe: str | None = None  # follow laptop (by default), gpt2-124m, gpt3-125m … 13b, a TOML file
    init_from: str | None = None  # fine-tune a Hub model or folder; by default, none
    out: str = "runs/7_long_run"  # write to this folder
    resume: bool = False  # continue the run in that folder
    restart: bool = False  # delete the run in that folder, and start over
    stop_at: int | None = None  # end at this step; by default, at --steps
    track: Literal["no", "tensorboard", "wandb", "trackio"] = "no"  # also log to this tracker
    # model, by default from the recipe
    model: str | None = None  # train this preset, or one like 4x2x128
    block_size: int | None = None  # T: put this many tokens in a row
    vocab_size: int | None = None  # use only the first N of GPT-2's 50257 tokens
    dropout: float | None = None  # drop this share of the activations
    # data, by default from the recipe
    data: str | None = None  # tinyshakespeare, plays, a text, shards, a folder
    batch_size: int | None = None  # B: rows per micro-batch, as many as fit
    total_batch_tokens: int | None = None  # tokens per step: B · T · ranks · micro-batches
    # optimization, by default from the recipe
    steps: int | None = None  # decay the learning rate over this many steps
    lr: float | None = None  # warm up to this learning rate
    lr_floor: float | None = None  # end the learning rate at this share of --lr
    warmup_steps: int | None = None  # warm up over this many steps
    weight_decay: float | None = None  # pull matrices and embeddings towards 0
    clip: float | None = None  # scale larger gradients down to this norm
    optimizer: Literal["adamw", "muon"] | None = None  # for the matrices of the blocks
    seed: int | None = None  # change it to draw other weights and batches
    # evaluation and checkpoints, by default from the recipe
    eval_every: int | None = None  # evaluate every N steps
    eval_tokens: int | None = None  # evaluate on this many validation tokens
    prompt: str | None = None  # start samples with this text
    eval_hellaswag: bool = False  # evaluate on HellaSwag too
    hellaswag_file: str | None = None  # read this copy; by default, download it
    hellaswag_limit: int | None = None  # ask only this many questions; by default, all
    checkpoint_every: int | None = None  # save a checkpoint every N steps
    keep: int | None = None  # keep the newest N checkpoints, and the best
    # speed, by default from the recipe
    dtype: Literal["auto", "float32", "bfloat16", "float16"] | None = None  # auto: native 16 bits
    attention: Literal["auto", "formula", "flash"] | None = None  # auto: flash, if not slower
    compile: Literal["auto", "yes", "no"] | None = None  # auto: where torch.compile works
    # device
    device: str = "auto"  # run on auto, cpu, cuda or mps
    shard: bool = False  # shard the model over the ranks (FSDP2)


def train(
    model: GPT,
    batches: RankBatches,
    val: torch.Tensor,
    log: LongRunLog,
    options: Options,
    setting: Setting,
    run: Run,
    stop: StopSignal,
) -> None:
    """Train model on the batches, from the newest checkpoint's step, or from step 0."""
    ranks, device = run.ranks, run.ranks.device
    groups = parameter_groups(model, options.weight_decay)
    optimizer = adamw(groups, options.lr)
    # new: Muon for the matrices of the blocks: it learns more in the same time
    optimizer = Muon(optimizer, model) if options.optimizer == "muon" else optimizer
    loss_of = ranks.loss_function(model, setting.compile)  # new: gradients are averaged over ranks
    scaler = torch.amp.GradScaler(device.type, enabled=setting.dtype is torch.float16)
    at_once = options.batch_size * options.block_size * ranks.world_size
    n_micro = options.total_batch_tokens // at_once  # new: the ranks share a step's micro-batches
    first = run.restore(model, optimizer, scaler, batches)  # new: a checkpoint's step, or 0
    last = options.stop_at or options.steps
    for step in range(first, last):
        if step % options.eval_every == 0:  # new: a long run needs watching
            report(step, model, val, log, options, setting, run)
        start = time.perf_counter()
        lr = learning_rate(step, options.lr, options.warmup_steps, options.steps, options.lr_floor)
        set_lr(optimizer, lr)
        total = torch.zeros((), device=device)
        for micro in range(n_micro):
            # new: the batch is in pinned memory, so the CPU need not wait for its copy to the GPU
            x, y = (ids.to(device, non_blocking=True) for ids in next(batches))
            # new: the ranks all-reduce gradients once per step, in the last micro-batch
            with ranks.exchanging(loss_of, now=micro == n_micro - 1):
                with autocast(device, setting.dtype):
                    loss = loss_of(x, y) / n_micro
                scaler.scale(loss).backward()
            total += loss.detach()
        scaler.unscale_(optimizer)
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), options.clip)
        # new: the ranks agree on the loss, and on whether to stop after this step
        loss, norm, stopping = ranks.agree(total, norm, stop.asked)
        run.check(step, loss, norm, scaler)  # new: no update if the loss or norm is not finite
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad()
        ms = (time.perf_counter() - start) * 1000
        tokens_per_s = options.total_batch_tokens / ms * 1000
        log.row(step=step, loss=loss, lr=lr, norm=norm, ms=ms, tokens_per_s=tokens_per_s)
        # new: a crash loses the steps since the last checkpoint, a signal loses none
        if stopping or step + 1 == last or (step + 1) % options.checkpoint_every == 0:
            log.sync()
            run.save(step + 1, model, optimizer, scaler, batches, options, log.best_saved())
        if stopping:
            print(f"stopped after step {step}: --resume continues the run")
            return
    report(last, model, val, log, options, setting, run)
    run.export(last, options)


def report(step, model, val, log, options: Options, setting: Setting, run: Run) -> None:
    """Print and log the validation loss and HellaSwag scores before a step; print a sample."""
    scores, ranks = {}, run.ranks
    with autocast(ranks.device, setting.dtype):
        found = evaluate_on_ranks(model, val, options.block_size, options.batch_size, ranks)
        perplexity = f"perplexity {found.perplexity:,.1f}, {found.bits_per_byte:.4f} bits/byte"
        print(f"step {step:>4}  validation loss {found.loss:.4f}, {perplexity}")
        if run.questions:
            how = (options.batch_size, ranks)
            asked = [hellaswag_on_ranks(model, run.questions, w, *how) for w in WORDINGS]
            scores = dict(zip(HELLASWAG, print_scores(*asked), strict=True))
        tokenizer = gpt2_tokenizer(options.vocab_size)
        prompt = torch.tensor([tokenizer.encode_ordinary(options.prompt)], device=ranks.device)
        sample = generate(model, prompt, 80, temperature=0.8, top_k=50, seed=options.seed)[0]
    print(quoted(tokenizer.decode(sample.tolist())))
    log.val(step, found.loss, bits_per_byte=found.bits_per_byte, **scores)
    log.plot()


def main(options: Options) -> None:
    with all_ranks(options.device) as ranks:
        if options.shard and not dist.is_initialized():
            raise UserError("--shard spreads a model over ranks: start it with torchrun")
        run = Run(options, ranks)
        options = ranks.from_main(lambda: resolve(options, run.saved.get("config"), ranks))
        chosen = ", ".join(f"{k}={v!r}" for k, v in run_config(options).items() if v is not None)
        print(fill(f"options: {chosen}", 79, subsequent_indent="  "))
        if options.shard and options.optimizer == "muon":
            hint = "leave --shard out, or start a run with --optimizer adamw"
            raise UserError(f"--shard splits each matrix, and Muon needs it whole: {hint}")
        B, T, device = options.batch_size, options.block_size, ranks.device
        last, first = options.stop_at or options.steps, run.saved.get("state", {}).get("step", 0)
        if first > last:
            name = "--stop-at" if options.stop_at else "--steps"
            raise UserError(f"the run is at step {first}: give a larger {name}")
        questions = None
        with ranks.first():
            tokens = open_tokens(options.data, options.vocab_size)
            if options.eval_hellaswag or options.hellaswag_file or options.hellaswag_limit:
                questions = read_questions(options.hellaswag_file, options.hellaswag_limit)
        batches = RankBatches(tokens.train, B, T, options.seed, ranks)
        val = torch.from_numpy(tokens.val[: options.eval_tokens].astype("int64"))
        setting = setting_of(options.dtype, options.attention, options.compile, device)
        repeat_exactly(device)
        model = run.model(options, setting).train()
        flops = replace(model.config, vocab_size=options.vocab_size).flops_per_token(T)  # unpadded
        peak = sum(ranks.gather(matmul_peak(device, setting.dtype or torch.float32)))
        torch.manual_seed(options.seed + ranks.rank)  # for dropout
        run.begin(options, model, fingerprint(tokens), questions)
        epochs = options.steps * options.total_batch_tokens / len(tokens.train)
        padding = (model.config.vocab_size - options.vocab_size) * model.config.n_embd
        n_params = sum(p.numel() for p in model.parameters()) - padding
        print(f"{n_params:,} parameters; steps {first} to {last} of {options.steps}, ", end="")
        print(f"{epochs:.3g} epochs in all")
        folder = run.folder if ranks.is_main else None
        if setting.compile and first < last:
            print("the first step compiles, which takes about a minute: --compile no skips it")
        with LongRunLog(folder, COLUMNS, last, options, first, peak / flops) as log:
            with StopSignal() as stop:  # Ctrl-C finishes the step
                train(model, batches, val, log, options, setting, run, stop)


if __name__ == "__main__":
    cli.run(main, Options)

# To try:
#   python 7_gpt2_train_long_run.py --steps 40 --out runs/short
#   python 1_gpt2_hf_eval.py --model runs/short/hf --prompt "ROMEO:"
#   torchrun --standalone --nproc_per_node=2 7_gpt2_train_long_run.py \
#       --batch-size 8 --steps 40 --out runs/two
#   python -m exercises 14 15    # yours to fill in: ranks, checkpoint
