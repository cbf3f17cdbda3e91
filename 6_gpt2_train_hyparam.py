"""Stage 6: GPT-3's hyper-parameters, on everything before.

New here: common/optim.py (which weights decay, AdamW, the learning rate of a step). Five things are
new in `train`, from GPT-3's paper (Brown et al., 2020, appendix B): a learning rate that warms up
and decays, gradient clipping, weight decay, AdamW's betas, and large batches. By common practice,
only matrices decay, and a batch too large for memory is accumulated from micro-batches.

    python 6_gpt2_train_hyparam.py    # a small GPT, 1.5 minutes on two cores
    python 6_gpt2_train_hyparam.py --model gpt2 --block-size 1024 \\
        --batch-size 16 --total-batch-tokens 524288

The second command is for a GPU: GPT-2 124M with GPT-3's batch size for 125M. For 10 billion tokens
add --steps 19073 --warmup-steps 715. You will see one line per step: the loss of the whole batch,
the learning rate, the gradient norm before clipping, time and throughput. Then come the validation
loss before and after (about 10.8 and 5.7), a sample that begins to look like a play, and what the
schedule, clipping, weight decay, fused AdamW and accumulation did. The folder --out holds
metrics.csv, metrics.png, and hf/, a model for stage 1 and for transformers.
"""

import time
from dataclasses import dataclass, replace
from typing import Literal

import torch

from common.data import Batches, load_tokens
from common.evals import Evaluation, evaluate
from common.generate import generate
from common.kit.cli import quoted, run
from common.kit.device import pick_device, repeat_exactly
from common.kit.disk import run_folder
from common.kit.measure import adamw_ms, spread
from common.kit.runlog import RunLog
from common.kit.track import TrackedLog
from common.ladder import WARMUP_STEPS, Rung
from common.model import GPT
from common.optim import adamw, check_plan, learning_rate, parameter_groups, set_lr
from common.presets import preset
from common.speed import Setting, autocast, best_setting, build, loss_function
from common.tokenizer import gpt2_tokenizer

COLUMNS = ("step", "loss", "lr", "norm", "ms", "tokens_per_s", "val_loss")


@dataclass
class Options:
    # model
    model: str = "gpt-micro"  # train this preset, or layers x heads x width, as in 4x2x128
    block_size: int = 128  # T: put this many tokens in a row
    # data
    data: str = "tinyshakespeare"  # train on tinyshakespeare, plays, a text file or a folder
    batch_size: int = 8  # B: put as many rows in a micro-batch as memory holds
    total_batch_tokens: int = 2048  # tokens per step: B · T · micro-batches; GPT-3 125M has 524,288
    # optimization
    steps: int = 250  # train for this many; the learning rate decays over all of them
    lr: float = 6e-4  # set the maximum learning rate; this is GPT-3's for 125M; try 2e-3
    lr_floor: float = 0.1  # end the learning rate at this share of --lr
    warmup_steps: int = 25  # warm up over this many: a tenth of --steps; GPT-3: 375M tokens
    betas: tuple[float, float] = (0.9, 0.95)  # keep these shares of AdamW's means at each step
    weight_decay: float = 0.1  # pull matrices and embeddings towards 0
    clip: float = 1.0  # scale larger gradients down to this norm
    seed: int = 1337  # change it to draw other weights and batches
    # run
    prompt: str = "\n"  # start the sample with this text
    out: str = "runs/6_hyparam"  # write to this folder
    track: Literal["no", "tensorboard", "wandb", "trackio"] = "no"  # also log to this tracker
    # device
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"  # auto: native 16 bits, or 32
    attention: Literal["auto", "formula", "flash"] = "auto"  # auto: flash, if not slower
    compile: Literal["auto", "yes", "no"] = "auto"  # auto: where torch.compile works
    device: str = "auto"  # run on auto, cpu, cuda or mps


def train(
    model: GPT, batches: Batches, val: torch.Tensor, log: RunLog, options: Options, setting: Setting
) -> Evaluation:
    """Train model on the batches, then evaluate it on the ids val (N,)."""
    device = next(model.parameters()).device
    # new: only matrices decay, by 0.1 (before: all weights, by PyTorch's 0.01); GPT-3's betas
    groups = parameter_groups(model, options.weight_decay)
    optimizer = adamw(groups, options.lr, options.betas)
    loss_of = loss_function(model, setting.compile)
    scaler = torch.amp.GradScaler(device.type, enabled=setting.dtype is torch.float16)
    # new: a batch too large for memory is cut into this many micro-batches
    n_micro = options.total_batch_tokens // (options.batch_size * options.block_size)
    for step in range(options.steps):
        start = time.perf_counter()
        # new: warm up while AdamW's running means (moments) cover only a few steps, then decay
        lr = learning_rate(step, options.lr, options.warmup_steps, options.steps, options.lr_floor)
        set_lr(optimizer, lr)
        total = torch.zeros((), device=device)  # on the device: .item() would wait each time
        for _ in range(n_micro):  # new: the gradients of the micro-batches add up
            x, y = (ids.to(device) for ids in next(batches))
            with autocast(device, setting.dtype):
                loss = loss_of(x, y) / n_micro  # backward sums gradients, and we want their mean
            scaler.scale(loss).backward()
            total += loss.detach()
        # new: an unusual batch must not throw the weights far off; unscale first, so that the limit
        # holds for the true gradients
        scaler.unscale_(optimizer)
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), options.clip)
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad()
        loss, norm = total.item(), norm.item()
        ms = (time.perf_counter() - start) * 1000
        tokens_per_s = options.total_batch_tokens / ms * 1000
        log.row(step=step, loss=loss, lr=lr, norm=norm, ms=ms, tokens_per_s=tokens_per_s)
    with autocast(device, setting.dtype):
        after = evaluate(model, val, options.block_size)
    log.val(options.steps, after.loss)
    return after


def print_what_each_did(log: RunLog, model, batches, val, options: Options, setting) -> None:
    """Print the range of learning rates, how many steps were clipped, and which weights decay; time
    AdamW's three forms, and steps of 1 and 4 micro-batches. The timed steps train the model
    further, so this comes after the export."""
    rows = log.rows()
    norms = [float(row["norm"]) for row in rows if row["norm"]]
    clipped = sum(not norm <= options.clip for norm in norms)
    decay, rest = (sum(p.numel() for p in g["params"]) for g in parameter_groups(model, 1.0))
    lrs = [float(row["lr"]) for row in rows if row["lr"]]
    print(f"\nlearning rate  up from {lrs[0]:.1e} to {max(lrs):.1e}, then down to {lrs[-1]:.1e}")
    print(f"clipping       {clipped} of {len(norms)} steps; largest norm {max(norms):.2f}")
    print(f"weight decay   {options.weight_decay:g} for {decay:,} weights, 0 for {rest:,}")
    forms = ", ".join(f"{name} {ms:.1f}" for name, ms in adamw_ms(model).items())
    print(f"AdamW          {forms} ms per update")
    print(f"micro-batches{'ms/step':>11}{'spread':>8}{'tokens/s':>10}")
    for n in (1, 4):
        tokens = n * options.batch_size * options.block_size
        short = replace(options, total_batch_tokens=tokens, steps=WARMUP_STEPS + 5)
        rung = Rung("")
        train(model, batches, val[:2], rung, short, setting)  # two tokens: only the steps are timed
        ms, per_s = rung.median_ms, tokens / rung.median_ms * 1000
        print(f"{n:>13}{ms:>11.1f}{f'±{spread(rung.timed):.0%}':>8}{per_s:>10,.0f}")


def main(options: Options) -> None:
    B, T = options.batch_size, options.block_size
    check_plan(options, B, T)
    # new: no positions beyond T, so that the exported model has no untrained ones
    config = preset(options.model, block_size=T)
    device = pick_device(options.device)
    repeat_exactly(device)
    torch.manual_seed(options.seed)
    tokens = load_tokens(options.data)
    batches = Batches(tokens.train, B, T, options.seed)
    val = torch.from_numpy(tokens.val.astype("int64"))
    folder = run_folder(options.out)
    choices = (options.dtype, options.attention, options.compile)
    setting = best_setting(config, B, T, device, *choices)
    model = build(config, setting, options.seed).to(device)
    epochs = options.steps * options.total_batch_tokens / len(tokens.train)
    chosen = ", ".join(f"{name} {value}" for name, value in setting.names().items())
    print(f"{options.model}: {chosen}")
    print(f"{options.steps} steps of {options.total_batch_tokens:,} tokens: {epochs:.2g} epochs")
    with TrackedLog(folder, COLUMNS, options.steps, options) as log:
        with autocast(device, setting.dtype):
            before = evaluate(model, val, T)
        log.val(0, before.loss)
        after = train(model, batches, val, log, options, setting)
    print(f"validation, before and after:\n  {before}\n  {after}")
    tokenizer = gpt2_tokenizer()
    prompt = torch.tensor([tokenizer.encode_ordinary(options.prompt)], device=device)
    sample = generate(model, prompt, 80, temperature=0.8, top_k=50, seed=options.seed)[0]
    print(quoted(tokenizer.decode(sample.tolist())))
    from common.pretrained import export  # transformers takes seconds to import

    steps = f"{options.steps} of {options.total_batch_tokens:,} tokens"
    export(model, folder, {"data": options.data, "steps": steps, "validation": after})
    print_what_each_did(log, model, batches, val, options, setting)


if __name__ == "__main__":
    run(main, Options)

# To try:
#   python 1_gpt2_hf_eval.py --model runs/6_hyparam/hf --prompt "ROMEO:"
#   python 6_gpt2_train_hyparam.py --lr 2e-3 --out runs/6_fast
#   python 6_gpt2_train_hyparam.py --batch-size 4 --out runs/6_micro     # the same loss, slower
#   python -m exercises 11 12 13    # yours to fill in: decay_groups, learning_rate, accumulation
