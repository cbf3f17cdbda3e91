"""The loss before and after, for hidden states that make most logits negative, or large."""

import math

import torch

from exercises.marking import Wrong

V, C = 10, 4


def check(answer) -> None:
    weight = torch.randn(V, C)
    weight[:, 0] = -3 + weight[:, 0] / 10  # the first channel makes all logits negative, or large
    before = weight.clone()
    same = answer.pad_vocab(weight.clone(), 5)
    if same.shape != (V, C):
        raise Wrong(f"10 ids are a multiple of 5 already, and became {len(same)}: add none")
    padded = answer.pad_vocab(weight.clone(), 8)
    if len(padded) < V:
        raise Wrong(f"of 10 ids {len(padded)} are left: round up, to 16")
    if padded.shape != (16, C):
        raise Wrong(f"(10, 4) padded to a multiple of 8 is {tuple(padded.shape)}, not (16, 4)")
    if torch.equal(padded[-V:], before):
        raise Wrong("the new rows come first, so that all ids change: put them at the end")
    if not torch.equal(padded[:V], before):
        raise Wrong("the first 10 rows are not what they were")
    check_loss(before, padded.detach())


def check_loss(weight, padded) -> None:
    limit = math.log(16 / 10)
    states = torch.cat((torch.eye(C), -torch.eye(C), torch.randn(20, C))) * 3
    rise = (states @ padded.T).logsumexp(1) - (states @ weight.T).logsumexp(1)  # of any target
    if rise.max() <= limit + 1e-4:
        return
    why = "no mean of the others"
    if (padded[V:] == 0).all():
        why = "zeros, so their logit is 0, here above all others"
    elif all((weight == row).all(1).any() for row in padded[V:]):
        why = "copies of other rows, which may be the most probable ones"
    raise Wrong(f"the loss may rise by {rise.max():.2f}, not by at most ln(16/10) = {limit:.2f}: "
                f"the new rows are {why}")  # fmt: skip
