"""A training step's hyper-parameters: which weights decay, AdamW, Muon, the learning rate.

GPT-3 paper (Brown et al., 2020), section 2.3 and appendix B: Adam with betas (0.9, 0.95), eps 1e-8
and weight decay 0.1, gradients clipped to a global norm of 1.0, a linear warm-up over 375 million
tokens, a cosine down to 10 % of the learning rate over 260 billion tokens, constant after that. By
later common practice, only matrices decay (as in nanoGPT).
"""

import math

import torch
import torch.nn as nn

from common.kit.cli import UserError
from common.model import GPT
from common.speed import autocast_dtype


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


class Muon:
    """Muon (Jordan, 2024) for the matrices of a model's blocks, AdamW for all else: one optimizer.

    A gradient changes a matrix along only a few of its directions. Muon accumulates gradients in a
    momentum and brings its singular values near 1, so that all directions are learned equally fast.
    The update is scaled to the RMS of AdamW's, about 0.2 (Moonlight, Liu et al., 2025, section
    2.2), so that both take the same learning rate and weight decay.
    """

    def __init__(self, adamw: torch.optim.AdamW, model: GPT, momentum: float = 0.95):
        self.adamw, self.state, self.momentum = adamw, adamw.state, momentum
        self.matrices = [p for p in model.transformer.h.parameters() if p.dim() == 2]
        inside, group = set(self.matrices), adamw.param_groups[0]
        group["params"] = [p for p in group["params"] if p not in inside]
        own = {"params": self.matrices, "lr": group["lr"], "weight_decay": group["weight_decay"]}
        self.param_groups = [own, *adamw.param_groups]

    @torch.no_grad()
    def step(self) -> None:
        lr, weight_decay = (self.param_groups[0][name] for name in ("lr", "weight_decay"))
        for p in self.matrices:
            if "momentum_buffer" not in self.state[p]:
                self.state[p]["momentum_buffer"] = torch.zeros_like(p)
            buffer = self.state[p]["momentum_buffer"].lerp_(p.grad, 1 - self.momentum)
            update = orthogonalized(p.grad.lerp(buffer, self.momentum))  # Nesterov's momentum
            p.mul_(1 - lr * weight_decay).add_(update, alpha=-0.2 * max(p.shape) ** 0.5 * lr)
        self.adamw.step()

    def zero_grad(self) -> None:
        for p in self.matrices:
            p.grad = None
        self.adamw.zero_grad()


def orthogonalized(matrix: torch.Tensor) -> torch.Tensor:
    """The matrix with most of its singular values near 1, by five steps of Newton-Schulz, each a
    polynomial a·X + b·XXᵀX + c·(XXᵀ)²X. In bf16 if the device has it, else fp32."""
    is_tall, (a, b, c) = matrix.size(0) > matrix.size(1), (3.4445, -4.7750, 2.0315)
    native = autocast_dtype(matrix.device) is torch.bfloat16
    X = matrix.to(torch.bfloat16 if native else torch.float32)
    X = X.mT if is_tall else X  # the smaller of the two products
    X = X / X.norm().clamp(min=1e-7)
    for _ in range(5):
        A = X @ X.mT
        B = torch.addmm(A, A, A, beta=b, alpha=c)
        X = torch.addmm(X, B, X, beta=a)
    return (X.mT if is_tall else X).to(matrix.dtype)


def learning_rate(step: int, lr: float, warmup_steps: int, steps: int, floor: float = 0.1) -> float:
    """The learning rate of a step, counted from 0. It rises linearly from lr / warmup_steps at step
    0 to lr at the end of the warm-up. Half a cosine takes it down to floor · lr at `steps`."""
    if step < warmup_steps:
        return lr * (step + 1) / warmup_steps
    if step >= steps:
        return lr * floor
    progress = (step - warmup_steps) / (steps - warmup_steps)  # 0 to 1
    return lr * (floor + (1 - floor) * (1 + math.cos(math.pi * progress)) / 2)


def set_lr(optimizer: torch.optim.Optimizer | Muon, lr: float) -> None:
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
