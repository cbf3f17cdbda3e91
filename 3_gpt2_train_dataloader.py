"""Stage 3: real text in batches, and a validation loss.

New here: common/data.py (tokenize a text, split off its end for validation, make batches). The loop
is stage 2's, but it takes a new batch at each step and ends with the loss on text that the model
was not trained on.

    python 3_gpt2_train_dataloader.py      # about a minute on two CPU cores
    python 3_gpt2_train_dataloader.py --data my_own.txt

You will see which text is read, one line per step, and the validation loss before training (about
10.95) and after it (about 6.2): the model has learned which words are frequent, and little more.
The folder --out holds metrics.csv and its plot, metrics.png.
"""

import time
from dataclasses import dataclass

import torch

from common.data import Batches, load_tokens
from common.evals import Evaluation, evaluate
from common.kit.cli import run
from common.kit.device import pick_device
from common.kit.disk import run_folder
from common.kit.runlog import RunLog
from common.model import GPT
from common.presets import preset

COLUMNS = ("step", "loss", "ms", "tokens_per_s", "val_loss")


@dataclass
class Options:
    data: str = "tinyshakespeare"  # train on tinyshakespeare, plays, a text file or a folder
    model: str = "gpt-micro"  # train this preset, or layers x heads x width, as in 4x2x128
    steps: int = 100  # train for this many steps
    batch_size: int = 8  # B: put this many rows in a batch
    block_size: int = 128  # T: put this many tokens in a row
    lr: float = 1e-3  # raise the learning rate to learn faster, until the loss jumps
    seed: int = 1337  # change it to draw other weights and batches
    out: str = "runs/3_dataloader"  # write to this folder
    device: str = "auto"  # run on auto, cpu, cuda or mps


def train(
    model: GPT, batches: Batches, val: torch.Tensor, log: RunLog, options: Options
) -> Evaluation:
    """Train model on the batches, then evaluate it on the ids val (N,)."""
    device = next(model.parameters()).device
    optimizer = torch.optim.AdamW(model.parameters(), lr=options.lr)
    for step in range(options.steps):
        start = time.perf_counter()
        x, y = (ids.to(device) for ids in next(batches))  # new: a different batch at each step
        loss = model(x, y)[1]
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        loss = loss.item()  # waits until the device has finished the step
        ms = (time.perf_counter() - start) * 1000
        # new: print the numbers, and save them to a file for the plot
        log.row(step=step, loss=loss, ms=ms, tokens_per_s=x.numel() / ms * 1000)
    after = evaluate(model, val, options.block_size)  # new: on text it was not trained on
    log.val(options.steps, after.loss)
    return after


def main(options: Options) -> None:
    B, T = options.batch_size, options.block_size
    config = preset(options.model, T)
    device = pick_device(options.device)
    torch.manual_seed(options.seed)
    tokens = load_tokens(options.data)
    batches = Batches(tokens.train, B, T, options.seed)
    val = torch.from_numpy(tokens.val.astype("int64"))
    n = batches.n_windows
    print(f"  an epoch: {n:,} windows of {T} tokens, {n / B:,.1f} batches of {B}")
    folder = run_folder(options.out)
    model = GPT(config).to(device)
    with RunLog(folder, COLUMNS, options.steps) as log:
        before = evaluate(model, val, T)
        log.val(0, before.loss)
        print(f"validation loss before training: {before.loss:.4f}")
        after = train(model, batches, val, log, options)
    print(f"validation, before and after:\n  {before}\n  {after}")


if __name__ == "__main__":
    run(main, Options)

# To try:
#   python 3_gpt2_train_dataloader.py --data plays --steps 300 --out runs/3_plays
#   python 3_gpt2_train_dataloader.py --lr 3e-1 --out runs/3_fast    # what does the curve do?
#   python 3_gpt2_train_dataloader.py --batch-size 1 --out runs/3_noisy
#   python -m exercises 07    # yours to fill in: batches
