"""A training step's hyper-parameters: which weights decay, AdamW, the learning rate.

GPT-3 paper (Brown et al., 2020), section 2.3 and appendix B: Adam with betas (0.9, 0.95), eps 1e-8
and weight decay 0.1, gradients clipped to a global norm of 1.0, a linear warm-up over 375 million
tokens, a cosine down to 10 % of the learning rate over 260 billion tokens, constant after that.
That only matrices decay is common practice since (nanoGPT does the same).
"""

import math

import torch
import torch.nn as nn

from common.kit.cli import UserError
from common.model import GPT


def parameter_groups(model: nn.Module, weight_decay: float) -> list[dict]:
    """Two groups for an optimizer: matrices and embeddings decay; biases and LayerNorms, which only
    shift and scale, do not. A tied matrix is there once."""
    parameters = list(model.parameters())
    return [
        {"params": [p for p in parameters if p.dim() >= 2], "weight_decay": weight_decay},
        {"params": [p for p in parameters if p.dim() < 2], "weight_decay": 0.0},
    ]


def adamw(
    groups: list[dict], lr: float, betas: tuple[float, float] = (0.9, 0.95), form: str = "fused"
) -> torch.optim.AdamW:
    """AdamW with GPT-3's constants. The three forms agree up to rounding: "for-loop" updates one
    tensor at a time, "foreach" runs one operation at a time on all, "fused" makes one pass."""
    forms = {"for-loop": {"foreach": False}, "foreach": {"foreach": True}, "fused": {"fused": True}}
    groups = [dict(group) for group in groups]  # torch writes the form into the dicts it gets
    return torch.optim.AdamW(groups, lr=lr, betas=betas, eps=1e-8, **forms[form])


class Muon:
    """Muon (Jordan, 2024) for the matrices of a model's blocks, AdamW for all else: one optimizer.

    A gradient changes a matrix along few of its directions. Muon adds up gradients to a momentum,
    and brings all singular values of that near 1, by matrix products alone (Newton-Schulz). So each
    direction is learned at the same rate. The update is then scaled to the size of AdamW's
    (Moonlight, Liu et al., 2025, section 2.2), so that both take the same learning rate.
    """

    def __init__(self, adamw: torch.optim.AdamW, model: GPT):
        group, blocks = adamw.param_groups[0], model.transformer.h.parameters()
        matrices = [p for p in blocks if p.dim() == 2]
        inside = set(matrices)
        group["params"] = [p for p in group["params"] if p not in inside]
        how = dict(lr=group["lr"], weight_decay=group["weight_decay"], momentum=0.95)
        muon = torch.optim.Muon(matrices, **how, adjust_lr_fn="match_rms_adamw")
        self.parts = (muon, adamw)
        self.state = muon.state = adamw.state  # no parameter is in both

    @property
    def param_groups(self) -> list[dict]:
        return [group for part in self.parts for group in part.param_groups]

    def step(self) -> None:
        for part in self.parts:
            part.step()

    def zero_grad(self) -> None:
        for part in self.parts:
            part.zero_grad()


def learning_rate(step: int, lr: float, warmup_steps: int, steps: int, floor: float = 0.1) -> float:
    """The learning rate of a step, counted from 0. It rises linearly from lr / warmup_steps at step
    0 to lr at the end of the warm-up. Half a cosine takes it down to floor · lr at `steps`."""
    if step < warmup_steps:
        return lr * (step + 1) / warmup_steps
    if step >= steps:
        return lr * floor
    progress = (step - warmup_steps) / (steps - warmup_steps)  # 0 to 1
    return lr * (floor + (1 - floor) * (1 + math.cos(math.pi * progress)) / 2)


def set_lr(optimizer: torch.optim.Optimizer, lr: float) -> float:
    """Set the learning rate of all groups. Returns it."""
    for group in optimizer.param_groups:
        group["lr"] = lr
    return lr


def check_plan(options, *factors: int) -> None:
    """Raises UserError if the warm-up is longer than the run, or if a batch is not a multiple of
    the B × T (× …) tokens that are computed at once."""
    if options.warmup_steps > options.steps:
        found = f"{options.warmup_steps} of {options.steps} --steps"
        raise UserError(f"--warmup-steps is {found}: give fewer")
    tokens, at_once = options.total_batch_tokens, math.prod(factors)
    if tokens % at_once:
        product, fits = " × ".join(map(str, factors)), max(1, tokens // at_once) * at_once
        raise UserError(f"--total-batch-tokens {tokens} is not a multiple of {product} tokens: "
                        f"give {fits}, or another --batch-size")  # fmt: skip
