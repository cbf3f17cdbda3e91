"""Stage 0: the model, its parts and shapes, and two checks.

New here: common/model.py, GPT-2 in 100 lines, and common/presets.py, its sizes by name. Read
the model before this script: the whole course uses it.

    python 0_gpt2_model.py                      # 5 seconds
    python 0_gpt2_model.py --model gpt3-13b     # the table alone, no weights

You will see each part of the model: the shape of its weight, its number of parameters, and the
shape of its output for a batch of ids. The total is 163,037,184 parameters as built here, and
124,439,808 once the output head shares the token embedding's matrix (stage 4). Two checks follow.
First, no position sees its future. Second, the loss of the untrained model is about 11.0, slightly
above the loss of a uniform guess, ln(50257) = 10.82; it varies by about 0.1 with the random ids.
"""

import math
from dataclasses import dataclass

import torch

from common.kit.cli import UserError, run
from common.kit.device import pick_device
from common.model import GPT
from common.presets import preset

MAX_TO_BUILD = 10**9  # parameters; a larger model stays on the "meta" device: shapes only


@dataclass
class Options:
    model: str = "gpt2"  # build this preset: gpt-nano … gpt2-xl, gpt3-125m … gpt3-13b, or 4x2x128
    batch_size: int = 4  # check it with this many rows of random ids
    block_size: int = 64  # put this many tokens in each row
    seed: int = 1337  # change it to draw other weights and ids
    device: str = "auto"  # run on auto, cpu, cuda or mps


def print_table(model: GPT, B: int, T: int) -> None:
    """Print the parts of the model in order of execution, with the shape of each output."""
    outputs = {}  # a part's name → the shape of its output
    leaves = [(k, part) for k, part in model.named_modules() if list(part.parameters(False))]
    for name, part in leaves:
        part.register_forward_hook(lambda _, __, y, k=name: outputs.update({k: tuple(y.shape)}))
    device = next(model.parameters()).device
    model(torch.zeros(B, T, dtype=torch.long, device=device))

    n_layer = model.config.n_layer
    print(f"{'part':<26}{'weight':>16}{'parameters':>16}   its output")
    for name, part in leaves:
        if name.startswith("transformer.h.") and not name.startswith("transformer.h.0."):
            continue  # all blocks are alike
        count = sum(p.numel() for p in part.parameters())
        times = f" ×{n_layer}" if ".h.0." in name else ""
        shape = " × ".join(str(n) for n in part.weight.shape)
        # wpe is sliced, not called, so its hook never runs: (T, C), the same for every row
        output = outputs.get(name, (T, model.config.n_embd))
        print(f"{name.removeprefix('transformer.'):<26}{shape:>16}{count:>16,}{times:<4} {output}")
    total = sum(p.numel() for p in model.parameters())
    tied = total - model.lm_head.weight.numel()
    flops = model.config.flops_per_token(T)
    print(f"{'total, with the head tied to wte':<42}{tied:>16,}")
    print(f"{'as built here, with a separate head':<42}{total:>16,}")
    print(f"{'FLOPs per token, forward and backward':<42}{flops:>16,}  at T = {T}")


def check_causality(model: GPT, idx: torch.Tensor) -> None:
    """Change the token at T/2: the logits before it must not change, not even by one bit."""
    changed, at = idx.clone(), idx.size(1) // 2
    changed[:, at] = (changed[:, at] + 1) % model.config.vocab_size
    before, after = model(idx)[0], model(changed)[0]
    past = torch.equal(before[:, :at], after[:, :at])
    moved = (before != after)[:, at:].any((0, 2)).sum().item()
    verdict = "the same, bit for bit" if past else "DIFFERENT"
    print(f"causality: change the token at position {at}, and the logits before it are")
    print(f"  {verdict}; {moved} of the {idx.size(1) - at} positions from there on change")
    if not past:
        raise AssertionError("a position sees its future: look at causal_attention")


def main(options: Options) -> None:
    B, T = options.batch_size, options.block_size
    config = preset(options.model, T)
    if T < 2:
        raise UserError("--block-size is 1: give 2 or more, so that there is a past and a future")
    with torch.device("meta"):
        outline = GPT(config)  # shapes without values
    print(f"{options.model}: {config.n_layer} layers, {config.n_head} heads, width {config.n_embd}")
    print(f"a batch of ({B}, {T}) ids; the block size is {config.block_size}\n")
    print_table(outline, B, T)
    n_params = sum(p.numel() for p in outline.parameters())
    if n_params > MAX_TO_BUILD:
        print(f"no checks: they would allocate {n_params * 4 / 1e9:.1f} GB of weights")
        return

    print()
    device = pick_device(options.device)
    torch.manual_seed(options.seed)
    model = GPT(config).to(device).eval()
    idx = torch.randint(config.vocab_size, (B, T), device=device)
    with torch.no_grad():
        check_causality(model, idx)
        logits, loss = model(idx, torch.randint(config.vocab_size, (B, T), device=device))
    # Normally distributed logits of variance σ² cost σ²/2 nats more than equal ones, on average.
    # The rest is chance: the targets are random.
    guess = math.log(config.vocab_size)
    print(f"the loss of the untrained model: {loss:.4f}")
    print(f"  the loss of a guess, ln({config.vocab_size}):    {guess:.4f}")
    print(f"  plus half the variance of the logits: {guess + logits.var().item() / 2:.4f}")


if __name__ == "__main__":
    run(main, Options)

# To try:
#   python 0_gpt2_model.py --model gpt2-xl
#   python 0_gpt2_model.py --model gpt-nano --batch-size 1 --block-size 1024
#   python 0_gpt2_model.py --block-size 1025     # what happens?
#   python -m exercises 01 02    # yours to fill in: causal_attention, block
