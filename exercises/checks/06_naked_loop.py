"""A table of logits, one row per token, is trained beside loops with known mistakes."""

import math

import torch
from torch import nn, optim
from torch.nn import functional as F

from exercises.marking import Wrong

STEPS, LR, V = 5, 0.1, 7


class Table(nn.Module):
    """The simplest language model: the next token depends on the last one alone."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.logits = nn.Parameter(torch.randn(V, V))

    def forward(self, idx, targets):
        logits = self.logits[idx]
        return logits, F.cross_entropy(logits.view(-1, V), targets.reshape(-1))


def loop(x, y, steps=STEPS, optimizer=optim.AdamW, anew=False, forget=True):
    """Losses and weights of a loop; anew: a new optimizer each step; forget: by zero_grad."""
    model = Table()
    losses, opt = [], optimizer(model.parameters(), lr=LR)
    for _ in range(steps):
        opt = optimizer(model.parameters(), lr=LR) if anew else opt
        loss = model(x, y)[1]
        loss.backward()
        opt.step()
        if forget:
            opt.zero_grad()
        losses.append(loss.item())
    return losses, model.logits.detach()


def default_lr(parameters, lr):
    return optim.AdamW(parameters)


def check(answer) -> None:
    ids = torch.randint(V, (2, 9))
    x, y = ids[:, :-1], ids[:, 1:]
    model = Table()
    losses = answer.train(model, x, y, STEPS, LR)
    weights = model.logits.detach()
    right, right_weights = loop(x, y)
    known = {
        "do not change: optimizer.step() comes after backward(), and zero_grad() after both":
            Table().logits.detach(),
        "are those of gradients that add up over the steps: zero_grad() is missing":
            loop(x, y, forget=False)[1],
        "are those of an optimizer that is made anew in each step, and forgets":
            loop(x, y, anew=True)[1],
        "are those of plain gradient descent: take AdamW": loop(x, y, optimizer=optim.SGD)[1],
        "are those of Adam: AdamW also decays the weights": loop(x, y, optimizer=optim.Adam)[1],
        "are those of AdamW's default learning rate: pass lr": loop(x, y, optimizer=default_lr)[1],
        f"are those of {STEPS - 1} steps, not {STEPS}": loop(x, y, STEPS - 1)[1],
        f"are those of {STEPS + 1} steps, not {STEPS}": loop(x, y, STEPS + 1)[1],
        "are those of a model that learns x from y": loop(y, x)[1],
    }  # fmt: skip
    for words, wrong in known.items():
        if torch.allclose(weights, wrong, atol=1e-6):
            raise Wrong(f"the weights {words}")
    if not torch.allclose(weights, right_weights, atol=1e-5):
        raise Wrong(f"the weights differ by {(weights - right_weights).abs().max():.4f} from those "
                    f"of {STEPS} steps of AdamW")  # fmt: skip
    check_losses(losses, right)


def check_losses(losses, right) -> None:
    if any(isinstance(loss, torch.Tensor) for loss in losses or ()):
        raise Wrong("the losses are tensors, each with its whole computation in memory: .item()")
    if losses is None or len(losses) != STEPS:
        raise Wrong(f"{len(losses or ())} losses are returned for {STEPS} steps")
    if math.isclose(losses[0], right[1], abs_tol=1e-3):
        raise Wrong(f"the first loss is {losses[0]:.4f}, as after the update; before it is "
                    f"{right[0]:.4f}")  # fmt: skip
    for step, (found, value) in enumerate(zip(losses, right, strict=True)):
        if not math.isclose(found, value, abs_tol=1e-3):
            raise Wrong(f"the loss of step {step} is {value:.4f}, not {found:.4f}")
