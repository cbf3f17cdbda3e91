"""Stage 3: real text, in batches, with a held-out loss.

New here: common/data.py (tokens, the held-out end, Batches) and common/runlog.py (what a run leaves
behind). The loop is stage 2's; it now takes a new batch at each step, and is judged on text that it
never saw.

    python 3_gpt2_train_dataloader.py
    python 3_gpt2_train_dataloader.py --data my_own.txt      # or a folder of .txt files

You will see which text it is, a line a step, and the held-out loss before (about 10.95) and after
(about 6.2): the model has learned which words are frequent, and little more yet. The run's folder
keeps metrics.csv and metrics.png.
"""

import time
from dataclasses import dataclass

import torch

from common.cli import run
from common.data import Batches, load_tokens
from common.device import pick_device, seed_everything
from common.evals import evaluate
from common.model import GPT, preset
from common.runlog import RunLog, run_folder


@dataclass
class Options:
    data: str = "tinyshakespeare"  # also: plays, a text file, a folder of them, a .npy file of ids
    model: str = "gpt-micro"  # a preset
    steps: int = 100
    batch_size: int = 8  # B, rows in a batch
    block_size: int = 128  # T, tokens in a row
    lr: float = 1e-3
    seed: int = 1337
    out: str = "runs/3_dataloader"  # the run's folder
    device: str = "auto"  # auto, cpu, cuda or mps


def main(options: Options) -> None:
    B, T = options.batch_size, options.block_size
    config = preset(options.model, T)
    device = pick_device(options.device)
    seed_everything(options.seed)
    tokens = load_tokens(options.data)
    batches = Batches(tokens.train, B, T, options.seed)
    held_out = torch.from_numpy(tokens.held_out.astype("int64"))
    n = batches.n_windows
    print(f"  an epoch: {n:,} windows of {T} tokens, {n / B:,.1f} batches of {B}; "
          f"{batches.tail} tokens over")  # fmt: skip
    folder = run_folder(options.out)
    model = GPT(config).to(device)
    optimizer = torch.optim.AdamW(model.parameters(), lr=options.lr)

    with RunLog(folder, "step", "loss", "ms", "tokens_per_s") as log:
        before = evaluate(model, held_out, T)
        log.held_out(0, before.loss)
        print(f"held out: {before}")
        for step, (x, y) in zip(range(options.steps), batches, strict=False):
            start = time.perf_counter()
            x, y = x.to(device), y.to(device)
            _, loss = model(x, y)
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            loss = loss.item()
            seconds = time.perf_counter() - start
            log.row(step=step, loss=loss, ms=seconds * 1000, tokens_per_s=B * T / seconds)
            if step == 4:
                print(f"about {seconds * (options.steps - 5):.0f} s to go")
        after = evaluate(model, held_out, T)
        log.held_out(options.steps, after.loss)
    print(f"held out, before and after:\n  {before}\n  {after}")


if __name__ == "__main__":
    run(main, Options)

# To try:
#   python 3_gpt2_train_dataloader.py --data plays --steps 300 --out runs/3_plays
#   python 3_gpt2_train_dataloader.py --lr 3e-1 --out runs/3_fast    # what does the curve do?
#   python 3_gpt2_train_dataloader.py --batch-size 1 --out runs/3_noisy
