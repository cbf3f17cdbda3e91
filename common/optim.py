"""What GPT-3 did about a step: which weights decay, how AdamW runs, how the learning rate moves.

GPT-3 paper (Brown et al., 2020), section 2.3 and appendix B: AdamW with betas (0.9, 0.95), eps 1e-8
and weight decay 0.1, gradients clipped to a global norm of 1.0, a linear warm-up, then a cosine
down to 10 % of the learning rate, and that from there on.
"""

import math

import torch
import torch.nn as nn
from torch.distributed.tensor import DTensor


def parameter_groups(model: nn.Module, weight_decay: float) -> list[dict]:
    """Two groups for an optimizer: matrices and embeddings decay; biases and LayerNorms, which
    scale and shift, do not. A tied matrix is in once."""
    parameters = list(model.parameters())
    return [
        {"params": [p for p in parameters if p.dim() >= 2], "weight_decay": weight_decay},
        {"params": [p for p in parameters if p.dim() < 2], "weight_decay": 0.0},
    ]


def print_groups(optimizer: torch.optim.Optimizer) -> None:
    """How many tensors and weights decay, and how many do not."""
    for group in optimizer.param_groups:
        count = sum(p.numel() for p in group["params"])
        print(f"weight decay {group['weight_decay']:g}: {len(group['params'])} tensors, {count:,}")


def adamw(groups: list[dict], lr: float, form: str = "fused") -> torch.optim.AdamW:
    """GPT-3's AdamW. The three forms compute the same: "for-loop" a tensor at a time, "foreach" an
    operation at a time over all tensors, "fused" everything in one pass over memory."""
    forms = {"for-loop": {"foreach": False}, "foreach": {"foreach": True}, "fused": {"fused": True}}
    groups = [dict(group) for group in groups]  # torch notes the form in the dicts it is given
    return torch.optim.AdamW(groups, lr=lr, betas=(0.9, 0.95), eps=1e-8, **forms[form])


def clip_gradients(model: nn.Module, most: float) -> torch.Tensor:
    """Scale all gradients down together so that their global norm is at most `most`; returns the
    norm before, a scalar on the device. Infinity changes nothing (Pascanu et al., 2013)."""
    norm = nn.utils.clip_grad_norm_(model.parameters(), most)
    return norm.full_tensor() if isinstance(norm, DTensor) else norm


def learning_rate(step: int, lr: float, warmup_steps: int, steps: int, floor: float = 0.1) -> float:
    """The learning rate of a step, counted from 0: lr / warmup_steps at the first, lr at the last
    of the warm-up, a half cosine down to floor · lr at `steps`, floor · lr after."""
    if step < warmup_steps:
        return lr * (step + 1) / warmup_steps
    if step >= steps:
        return lr * floor
    progress = (step - warmup_steps) / (steps - warmup_steps)  # 0 to 1
    return lr * (floor + (1 - floor) * (1 + math.cos(math.pi * progress)) / 2)
