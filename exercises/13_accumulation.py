"""Exercise 13, stage 6: a batch larger than memory.

backward() adds to the gradients that are already there. So a batch is cut into micro-batches that
fit in memory, and the optimizer steps once, when the gradients of all have been added up. The loss
of the whole batch is the mean of the micro-batches' losses, if all are equally large. So its
gradient is the mean of theirs, and not their sum:

    gradient = Σ gradient of (loss of a micro-batch / number of micro-batches)

Then the gradient is clipped. If its norm, over all parameters together, exceeds the limit, the
whole gradient is scaled down to the limit and keeps its direction. So one unusual batch can't throw
the weights far off. (Pascanu et al., 2013, for clipping; Brown et al., 2020: clipped to 1.0.)
"""

import torch


def train_step(
    model: torch.nn.Module, optimizer, micro_batches: list[tuple], clip: float
) -> tuple[float, float]:
    """One step of the optimizer on micro-batches x, y, all equally large. model(x, y) returns
    logits and the mean loss. clip is the maximum norm. Returns, as numbers, the loss of the whole
    batch and the norm of its gradient before clipping. Leaves no gradients behind."""
    raise NotImplementedError


# region Hint. Fold this away; open it when you are stuck.
#
# In a loop over the micro-batches: loss = model(x, y)[1] / len(micro_batches), loss.backward(), and
# add loss.item() to a total. After the loop, once each: torch.nn.utils.clip_grad_norm_(
# model.parameters(), clip), which returns the norm before; optimizer.step(); optimizer.zero_grad().
# endregion
