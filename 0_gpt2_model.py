"""Stage 0: the model, and proof that it is GPT-2.

New here: common/model.py, GPT-2 in some 130 lines. Read it first; common/device.py and
common/cli.py, which all scripts use, can wait.

    python 0_gpt2_model.py
    python 0_gpt2_model.py --model gpt3-13b     # a table only: no weight is allocated

You will see every part with its shape and its parameters, 124,439,808 of them with the head tied
to the token embedding and 163,037,184 as built here with the head apart, and a batch of ids on its
way through. Then two proofs: no position sees its future, and a model that has learned nothing has
a loss of about 10.95, a little more than ln(50257) = 10.82, the loss of guessing among all tokens
alike, because its logits already differ.
"""

import math
from dataclasses import dataclass

import torch

from common.cli import run
from common.device import pick_device, seed_everything
from common.model import GPT, preset

MOST_TO_BUILD = 10**9  # parameters; of a larger model shapes alone, on torch's "meta" device


@dataclass
class Options:
    model: str = "gpt2"  # a preset: gpt-nano … gpt2-xl, gpt3-125m … gpt3-13b
    batch_size: int = 4  # rows in the batch of random ids
    block_size: int = 64  # tokens in each row
    seed: int = 1337
    device: str = "auto"  # auto, cpu, cuda or mps


def print_table(model: GPT, B: int, T: int) -> None:
    """The parts of the model in the order of the computation, with what comes out of each."""
    outputs = {}  # a part's name → the shape of its output

    def remember(name):
        return lambda part, inputs, output: outputs.update({name: tuple(output.shape)})

    parts = [(name, part) for name, part in model.named_modules() if list(part.parameters())]
    leaves = [(name, part) for name, part in parts if not list(part.children())]
    hooks = [part.register_forward_hook(remember(name)) for name, part in leaves]
    device = next(model.parameters()).device
    model(torch.zeros(B, T, dtype=torch.long, device=device))
    for hook in hooks:
        hook.remove()

    n_layer = model.config.n_layer
    print(f"{'part':<26}{'weight':>16}{'parameters':>16}   its output")
    for name, part in leaves:
        if name.startswith("transformer.h.") and not name.startswith("transformer.h.0."):
            continue  # all blocks are alike
        count = sum(p.numel() for p in part.parameters())
        times = f" ×{n_layer}" if ".h.0." in name else ""
        shape = " × ".join(str(n) for n in part.weight.shape)
        # positions are read as rows of a table, not called: the same (T, C) for every row
        output = outputs.get(name, (T, model.config.n_embd))
        print(f"{name.removeprefix('transformer.'):<26}{shape:>16}{count:>16,}{times:<4} {output}")
    total = sum(p.numel() for p in model.parameters())
    tied = total - model.lm_head.weight.numel()
    print(
        f"total, with the head tied to wte {tied:>25,}\nas built here, the head apart {total:>28,}"
    )
    print(f"FLOPs a token, forward and backward {model.config.flops_per_token(T):>22,}  at T = {T}")


def prove_causality(model: GPT, idx: torch.Tensor) -> None:
    """Change the token at T/2: the logits before it must stay the same, bit for bit."""
    changed, at = idx.clone(), idx.size(1) // 2
    changed[:, at] = (changed[:, at] + 1) % model.config.vocab_size
    before, after = model(idx)[0], model(changed)[0]
    past = torch.equal(before[:, :at], after[:, :at])
    moved = int(((before - after)[:, at:].abs().amax((0, 2)) > 0).sum())
    verdict = "the same, bit for bit" if past else "DIFFERENT"
    print(f"causality: with another token at {at}, the logits at 0 to {at - 1} are {verdict};")
    print(f"           {moved} of the {idx.size(1) - at} from {at} on have moved")
    if not past:
        raise AssertionError("a position sees its future: look at causal_attention")


def main(options: Options) -> None:
    config, B, T = preset(options.model), options.batch_size, options.block_size
    with torch.device("meta"):
        outline = GPT(config)  # shapes without numbers
    print(f"{options.model}: {config.n_layer} layers, {config.n_head} heads, width {config.n_embd}")
    print(f"on its way: ({B}, {T}) ids, of at most (any, {config.block_size})\n")
    print_table(outline, B, T)
    n_params = sum(p.numel() for p in outline.parameters())
    if n_params > MOST_TO_BUILD:
        print(f"the proofs would need {n_params * 4 / 1e9:.1f} GB of weights: none is allocated")
        return

    print()
    device = pick_device(options.device)
    seed_everything(options.seed)
    model = GPT(config).to(device).eval()
    idx = torch.randint(config.vocab_size, (B, T), device=device)
    with torch.no_grad():
        prove_causality(model, idx)
        logits, loss = model(idx, torch.randint(config.vocab_size, (B, T), device=device))
    # Logits spread as a normal distribution of variance σ² cost σ²/2 nats more than equal ones.
    guess = math.log(config.vocab_size)
    print(f"the loss of the untrained model: {loss:.4f}")
    print(f"  beside ln({config.vocab_size}) = {guess:.4f}, the loss of a guess, and with half the")
    print(f"  variance of the logits added {guess + logits.var().item() / 2:.4f}")


if __name__ == "__main__":
    run(main, Options)

# To try:
#   python 0_gpt2_model.py --model gpt2-xl
#   python 0_gpt2_model.py --model gpt-nano --batch-size 1 --block-size 1024
#   python 0_gpt2_model.py --block-size 1025     # what does the model say?
