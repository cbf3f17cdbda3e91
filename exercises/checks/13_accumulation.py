"""Plain gradient descent with a learning rate of 1: the change of the weights is the gradient, and
is compared with that of the big batch."""

import math

import torch
from torch import nn
from torch.nn import functional as F

from exercises.marking import Wrong

N, V = 4, 7  # micro-batches, ids
CLIP, LARGE = 0.05, 1e9


class Table(nn.Module):
    """The next token depends on the last one alone: two tables are added."""

    def __init__(self):
        super().__init__()
        generator = torch.Generator().manual_seed(5)
        self.a = nn.Parameter(torch.randn(V, V, generator=generator))
        self.b = nn.Parameter(torch.randn(V, generator=generator))

    def forward(self, idx, targets):
        logits = self.a[idx] + self.b
        return logits, F.cross_entropy(logits.view(-1, V), targets.reshape(-1))


class Small(Table):
    """Its memory holds one micro-batch."""

    def forward(self, idx, targets):
        if len(idx) > 2:
            raise Wrong(f"{len(idx)} rows at once: give the model one micro-batch at a time")
        return super().forward(idx, targets)


def weights(model) -> torch.Tensor:
    return torch.cat([p.detach().flatten() for p in model.parameters()])


def gradient(x, y) -> tuple[torch.Tensor, float]:
    model = Table()
    loss = model(x, y)[1]
    loss.backward()
    return torch.cat([p.grad.flatten() for p in model.parameters()]), loss.item()


class Steps(torch.optim.SGD):
    """Counts its steps."""

    count = 0

    def step(self, closure=None):
        self.count += 1
        return super().step(closure)


def change(answer, micro_batches, clip: float):
    """How a step changes the weights, and the loss and the norm that it returns."""
    model = Small()
    optimizer, before = Steps(model.parameters(), lr=1.0), weights(model)
    returned = answer.train_step(model, optimizer, list(micro_batches), clip)
    if optimizer.count != 1:
        raise Wrong(f"the optimizer makes {optimizer.count} steps for {N} micro-batches: it is to "
                    "make one, after the last")  # fmt: skip
    if returned is None or len(returned) != 2:
        raise Wrong("return two numbers: the loss, and the norm before clipping")
    if any(isinstance(number, torch.Tensor) for number in returned):
        raise Wrong("a tensor is returned, which may hold the whole computation in memory: .item()")
    return before - weights(model), *(float(number) for number in returned)


def check(answer) -> None:
    ids = torch.randint(V, (N, 2, 9), generator=torch.Generator().manual_seed(6))
    x, y = ids[..., :-1], ids[..., 1:]
    micro_batches = list(zip(x, y, strict=True))
    right, loss = gradient(x.flatten(0, 1), y.flatten(0, 1))
    last, last_loss = gradient(x[-1], y[-1])
    norm = right.norm().item()
    moved, found_loss, found_norm = change(answer, micro_batches, LARGE)
    check_gradient(moved, right, last)
    clipped = change(answer, micro_batches, CLIP)
    check_clipping(clipped[0], right, norm)
    known = {f"the sum over the {N} micro-batches, not their mean": N * loss,
             "the last micro-batch's": last_loss, "the last micro-batch's, divided": last_loss / N,
             f"{N} times too small: it is divided twice": loss / N}  # fmt: skip
    compare("loss", found_loss, loss, known)
    compare("norm", clipped[2], norm, {"that after clipping": CLIP})
    compare("norm", found_norm, norm, {})
    check_nothing_is_left(answer, micro_batches)


def check_gradient(moved, right, last) -> None:
    if (moved == 0).all():
        raise Wrong("the weights do not change: backward() in the loop, zero_grad() after the step")
    for other, words in ((right, "the big batch's"), (last, "the last micro-batch's alone")):
        factor = (moved.norm() / other.norm()).item()
        if torch.allclose(moved, factor * other, atol=1e-5):
            if other is last:
                raise Wrong(f"the gradient is {words}: zero_grad() comes after the loop, not in it")
            if abs(factor - N) < 1e-3:
                raise Wrong(f"the weights move {N} times too far: the loss was not divided by the "
                            "number of micro-batches")  # fmt: skip
            if abs(factor - 1 / N) < 1e-3:
                raise Wrong(f"the weights move {N} times too little: divide once, not twice")
            if abs(factor - 1) > 1e-3:
                raise Wrong(f"the limit is {LARGE:g}, and yet the weights move {factor:.3g} times "
                            "as far: scale only a gradient that exceeds it")  # fmt: skip
            return
    raise Wrong("the weights do not move along the gradient of the big batch")


def check_clipping(moved, right, norm: float) -> None:
    if torch.allclose(moved, right, atol=1e-5):
        raise Wrong(f"a gradient of norm {norm:.2f} is not clipped to {CLIP}: clip before the step")
    if torch.allclose(moved, right.clamp(-CLIP, CLIP), atol=1e-5):
        raise Wrong("each number is clipped on its own: scale the whole gradient, by its norm")
    if not torch.allclose(moved, right * CLIP / norm, atol=1e-4):
        why = ""
        if not torch.allclose(moved / moved.norm(), right / norm, atol=1e-3):
            why = ", in another direction: clip once, after the loop, all parameters together"
        raise Wrong(f"clipped to {CLIP}, the gradient has the norm {moved.norm():.2f}{why}")


def compare(what: str, found: float, right: float, known: dict) -> None:
    if math.isclose(found, right, rel_tol=1e-4):
        return
    same = [words for words, value in known.items() if math.isclose(found, value, rel_tol=1e-4)]
    why = "".join(f", {words}" for words in same)
    raise Wrong(f"the {what} is {found:.4f}{why}; that of the whole batch is {right:.4f}")


def check_nothing_is_left(answer, micro_batches) -> None:
    model = Table()
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    answer.train_step(model, optimizer, micro_batches, LARGE)
    if any(p.grad is not None and p.grad.any() for p in model.parameters()):
        raise Wrong("gradients are left behind, and the next step would add to them: zero_grad()")
