"""Muon, an optimizer for the matrices of a model's blocks that learns more in the same time."""

import torch

from common.model import GPT
from common.speed import autocast_dtype


class Muon:
    """Muon (Jordan, 2024) for the matrices of a model's blocks, AdamW for the rest: one optimizer.

    A gradient changes a matrix along only a few of its directions. Muon takes a running mean of
    gradients (momentum) and brings its singular values near 1, so that all directions are learned
    equally fast. The update is scaled to the RMS of AdamW's, about 0.2 (Moonlight, Liu et al.,
    2025, section 2.2), so that both take the same learning rate and weight decay.
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
