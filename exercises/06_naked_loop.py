"""Exercise 6, stage 2: the training loop, and nothing else.

    predict, and measure the loss    loss = model(x, y)[1]
    differentiate                    loss.backward() adds to each weight's .grad
    update                           the optimizer's step changes each weight by its .grad
    forget                           the next backward must not add to this gradient

AdamW divides a running mean of the gradients by the root of a running mean of their squares, so
each weight moves by about lr per step. It keeps both means from step to step.
(Loshchilov and Hutter, 2019.)
"""

import torch


def train(model, x: torch.Tensor, y: torch.Tensor, steps: int, lr: float) -> list[float]:
    """Train model on the batch x, y, (B, T) int64, for `steps` steps of AdamW with PyTorch's
    defaults, except lr. model(x, y) returns logits and loss. Returns the loss of each step as a
    number, computed before that step's update."""
    raise NotImplementedError


# region Hint. Fold this away; open it when you are stuck.
#
# optimizer = torch.optim.AdamW(model.parameters(), lr=lr), once, before the loop. In the loop: the
# loss, loss.backward(), optimizer.step(), optimizer.zero_grad(), in this order. loss is a tensor
# that keeps the whole computation in memory; loss.item() is its number.
# endregion
