"""A training step's hyper-parameters: which weights decay, AdamW, the learning rate.

GPT-3 paper (Brown et al., 2020), section 2.3 and appendix B: Adam with betas (0.9, 0.95), eps 1e-8
and weight decay 0.1, gradients clipped to a global norm of 1.0, a linear warm-up over 375 million
tokens, a cosine decay to 10 % of the learning rate over 260 billion tokens, constant after that. By
later common practice, only matrices decay (as in nanoGPT).
"""

import math

import torch
import torch.nn as nn

from common.kit.cli import UserError


def parameter_groups(model: nn.Module, weight_decay: float) -> list[dict]:
    """Two groups for an optimizer: matrices and embeddings decay; biases and LayerNorms, which only
    shift and scale, do not. A tied matrix is listed once."""
    parameters = list(model.parameters())
    return [
        {"params": [p for p in parameters if p.dim() >= 2], "weight_decay": weight_decay},
        {"params": [p for p in parameters if p.dim() < 2], "weight_decay": 0.0},
    ]


def adamw(
    groups: list[dict], lr: float, betas: tuple[float, float] = (0.9, 0.95)
) -> torch.optim.AdamW:
    """AdamW with GPT-3's constants, fused as on stage 5's rung 6."""
    return torch.optim.AdamW(groups, lr=lr, betas=betas, eps=1e-8, fused=True)


def learning_rate(step: int, lr: float, warmup_steps: int, steps: int, floor: float = 0.1) -> float:
    """The learning rate of a step, counted from 0. It rises linearly from lr / warmup_steps at step
    0 to lr at the end of the warm-up. Then half a cosine takes it down to floor · lr at `steps`."""
    if step < warmup_steps:
        return lr * (step + 1) / warmup_steps
    if step >= steps:
        return lr * floor
    progress = (step - warmup_steps) / (steps - warmup_steps)  # 0 to 1
    return lr * (floor + (1 - floor) * (1 + math.cos(math.pi * progress)) / 2)


def set_lr(optimizer: torch.optim.Optimizer, lr: float) -> None:
    """Set the learning rate of all groups."""
    for group in optimizer.param_groups:
        group["lr"] = lr


def check_plan(options, *factors: int) -> None:
    """Raises UserError if the warm-up is longer than the run, or if a batch is not a multiple of
    the B × T (× …) tokens that are computed at once."""
    if options.warmup_steps > options.steps:
        found = f"a warm-up of {options.warmup_steps} steps is longer than --steps {options.steps}"
        raise UserError(f"{found}: give --warmup-steps {options.steps} or fewer")
    tokens, at_once = options.total_batch_tokens, math.prod(factors)
    if tokens % at_once:
        product, fits = " × ".join(map(str, factors)), max(1, tokens // at_once) * at_once
        found = f"--total-batch-tokens {tokens} is not a multiple of {product} tokens"
        raise UserError(f"{found}: give {fits}, or another --batch-size")
