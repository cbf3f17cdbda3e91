"""Stage 4: weight tying and GPT-2's initialisation.

New here: common/init.py, two functions that are called on a model. The loop, the data and the seed
are stage 3's; the same batches train three models, so that what differs is their start alone.

    python 4_gpt2_train_best_practices.py

You will see for each model its parameters, its loss at step 0 beside ln(50257) = 10.82, and the
spread of what leaves the last block. Tied to an embedding drawn from normal(0, 1), the head shouts:
each logit is a sum of C products of spread 1, so of spread √C, and the loss is above 60 before any
step. Drawn as GPT-2 draws it, the model starts where it should, at about 10.83, and after 100 steps
is level with the first one, with half its parameters. metrics.png shows the three curves.
"""

import math
import time
from dataclasses import dataclass

import torch

from common.cli import run
from common.data import Batches, load_tokens
from common.device import pick_device, seed_everything
from common.evals import evaluate
from common.init import init_weights, tie_weights
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
    out: str = "runs/4_best_practices"  # the run's folder
    device: str = "auto"  # auto, cpu, cuda or mps


# What each of the three does to a model as PyTorch made it, the next on top of the one before.
STARTS = {
    "as in stage 3": lambda model, seed: model,
    "tied": lambda model, seed: tie_weights(model),
    "tied, initialised": lambda model, seed: init_weights(tie_weights(model), seed),
}


@torch.no_grad()
def residual_spread(model: GPT, x: torch.Tensor) -> float:
    """Standard deviation of the residual stream after the last block, for ids x (B, T)."""
    seen = []
    hook = model.transformer.h[-1].register_forward_hook(lambda _, __, out: seen.append(out.std()))
    model(x)
    hook.remove()
    return seen[0].item()


def main(options: Options) -> None:
    B, T = options.batch_size, options.block_size
    config = preset(options.model, T)
    device = pick_device(options.device)
    tokens = load_tokens(options.data)
    held_out = torch.from_numpy(tokens.held_out.astype("int64"))
    Batches(tokens.train, B, T)  # complains now if the text is too short
    table = []
    with RunLog(run_folder(options.out), "start", "step", "loss", "ms", "tokens_per_s") as log:
        for name, start_from in STARTS.items():
            print(f"\n{name}:")
            seed_everything(options.seed)
            model = start_from(GPT(config), options.seed).to(device)
            optimizer = torch.optim.AdamW(model.parameters(), lr=options.lr)
            batches = Batches(tokens.train, B, T, options.seed)
            spread = residual_spread(model, held_out[None, :T].to(device))
            losses = []
            for step, (x, y) in zip(range(options.steps), batches, strict=False):
                start = time.perf_counter()
                x, y = x.to(device), y.to(device)
                _, loss = model(x, y)
                loss.backward()
                optimizer.step()
                optimizer.zero_grad()
                losses.append(loss.item())
                seconds = time.perf_counter() - start
                log.row(name, start=name, step=step, loss=losses[-1], ms=seconds * 1000,
                        tokens_per_s=B * T / seconds)  # fmt: skip
                if step == 4:
                    left = seconds * (options.steps - 5)
                    print(f"about {left:.0f} s to go for this model, of {len(STARTS)}")
            after = evaluate(model, held_out, T)
            log.held_out(options.steps, after.loss, name)
            n_params = sum(p.numel() for p in model.parameters())
            table.append((name, n_params, losses[0], spread, losses[-1], after.loss))

    print(f"\n{'':<18}{'parameters':>12}{'step 0':>9}{'spread':>9}{'last':>9}{'held out':>10}")
    for name, n_params, first, spread, last, after in table:
        print(f"{name:<18}{n_params:>12,}{first:>9.3f}{spread:>9.3f}{last:>9.3f}{after:>10.3f}")
    print(f"a guess among {config.vocab_size:,} costs {math.log(config.vocab_size):>7.3f}")


if __name__ == "__main__":
    run(main, Options)

# To try:
#   python 4_gpt2_train_best_practices.py --model gpt-nano --steps 300 --out runs/4_nano
#   python 4_gpt2_train_best_practices.py --lr 1e-2 --out runs/4_fast    # which start forgives it?
