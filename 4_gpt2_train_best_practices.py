"""Stage 4: weight tying and GPT-2's initialization.

New here: common/init.py, two functions that change a model's weights. The loop, the data and the
seed are stage 3's. Three models train on the same batches; only tying and initialization differ.

    python 4_gpt2_train_best_practices.py  # 2 minutes on two CPU cores

You will see each model's number of parameters, its loss at step 0 (that of a guess is ln(50257) =
10.82), and the standard deviation of the residual stream after the last block (std). PyTorch draws
a head's weights uniformly between ±1/√C, and an embedding's from normal(0, 1). Once the head is
tied to it, a logit is a sum of C products of size 1, so its standard deviation is √C. The residual
stream still contains the embedding of the token just read, so that token's logit is far above the
others: the model predicts that each token repeats, and the loss starts at about 82. With GPT-2's
initialization it starts at about 10.83, and after 100 steps the validation loss is about the first
model's, with half the parameters (see metrics.png).
"""

import math
import time
from dataclasses import dataclass

import torch

from common.data import Batches, load_tokens
from common.evals import Evaluation, evaluate
from common.init import init_weights, tie_weights
from common.kit.cli import run
from common.kit.device import pick_device
from common.kit.disk import run_folder
from common.kit.runlog import RunLog
from common.model import GPT
from common.presets import preset

COLUMNS = ("curve", "step", "loss", "ms", "tokens_per_s", "val_loss")


@dataclass
class Options:
    data: str = "tinyshakespeare"  # train on tinyshakespeare, plays, a text file or a folder
    model: str = "gpt-micro"  # train this preset, or layers x heads x width, as in 4x2x128
    steps: int = 100  # train for this many steps
    batch_size: int = 8  # B: put this many rows in a batch
    block_size: int = 128  # T: put this many tokens in a row
    lr: float = 1e-3  # raise the learning rate to learn faster, until the loss jumps
    seed: int = 1337  # change it to draw other weights and batches
    out: str = "runs/4_best_practices"  # write to this folder
    device: str = "auto"  # run on auto, cpu, cuda or mps


# How each variant changes the model that PyTorch has initialized.
VARIANTS = {
    "as in stage 3": lambda model, seed: model,
    "tied": lambda model, seed: tie_weights(model),
    "tied, initialized": lambda model, seed: init_weights(tie_weights(model), seed),
}


@torch.no_grad()
def residual_std(model: GPT, x: torch.Tensor) -> float:
    """Standard deviation of the residual stream after the last block, for ids x (B, T)."""
    x = model.transformer.wte(x) + model.transformer.wpe.weight[: x.size(1)]
    for block in model.transformer.h:
        x = block(x)
    return x.std().item()


def train(
    model: GPT, batches: Batches, val: torch.Tensor, log: RunLog, options: Options
) -> Evaluation:
    """As in stage 3: the loop is the same for all three models."""
    device = next(model.parameters()).device
    optimizer = torch.optim.AdamW(model.parameters(), lr=options.lr)
    for step in range(options.steps):
        start = time.perf_counter()
        x, y = (ids.to(device) for ids in next(batches))
        loss = model(x, y)[1]
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        loss = loss.item()  # waits until the device has finished the step
        ms = (time.perf_counter() - start) * 1000
        log.row(step=step, loss=loss, ms=ms, tokens_per_s=x.numel() / ms * 1000)
    after = evaluate(model, val, options.block_size)
    log.val(options.steps, after.loss)
    return after


def main(options: Options) -> None:
    B, T = options.batch_size, options.block_size
    config = preset(options.model, T)
    device = pick_device(options.device)
    tokens = load_tokens(options.data)
    val = torch.from_numpy(tokens.val.astype("int64"))
    Batches(tokens.train, B, T)  # raises now if the text is too short
    table = []
    with RunLog(run_folder(options.out), COLUMNS, options.steps * len(VARIANTS)) as log:
        for number, (name, prepare) in enumerate(VARIANTS.items(), 1):
            print(f"\nmodel {number} of {len(VARIANTS)}, {name}:")
            log.curve = name
            torch.manual_seed(options.seed)
            model = prepare(GPT(config), options.seed).to(device)
            batches = Batches(tokens.train, B, T, options.seed)
            std = residual_std(model, val[None, :T].to(device))
            after = train(model, batches, val, log, options)
            rows = [row for row in log.rows() if row["curve"] == name and row["loss"]]
            first, last = (float(row["loss"]) for row in (rows[0], rows[-1]))
            n_params = sum(p.numel() for p in model.parameters())
            table.append((name, n_params, first, std, last, after.loss))

    losses = f"{'first loss':>12}{'last loss':>11}{'val loss':>10}"
    print(f"\n{'':<18}{'parameters':>12}{'std':>7}{losses}")
    for name, n_params, first, std, last, after in table:
        print(f"{name:<18}{n_params:>12,}{std:>7.3f}{first:>12.3f}{last:>11.3f}{after:>10.3f}")
    print(f"a guess among {config.vocab_size:,}{math.log(config.vocab_size):>29.3f}")


if __name__ == "__main__":
    run(main, Options)

# To try:
#   python 4_gpt2_train_best_practices.py --model gpt-nano --steps 300 --out runs/4_nano
#   python 4_gpt2_train_best_practices.py --lr 1e-2 --out runs/4_fast    # which one is best now?
#   python -m exercises 08    # yours to fill in: tie_and_init
