"""A sequence of 10 tokens, in pieces, beside the formula over all of it at once. Values that are
rows of a unit matrix show which positions are attended to."""

import torch

from exercises.marking import Wrong

S, HS = 10, 10
PIECES = (4, 1, 1, 3, 1)


def formula(q, k, v):
    scores = q @ k.transpose(-2, -1) / HS**0.5
    return scores.masked_fill(torch.ones(S, S).triu(1) > 0, -torch.inf).softmax(-1) @ v


def check(answer) -> None:
    q, k = torch.randn(2, 2, 3, S, HS)
    v = torch.eye(S).expand(2, 3, S, S)
    right = formula(q, k, v)
    cache, other, start = {}, {}, 0
    for T in PIECES:
        new = slice(start, start + T)
        out = answer.attend(q[:, :, new], k[:, :, new], v[:, :, new], cache)
        if out.shape != (2, 3, T, HS):
            raise Wrong(f"for {T} new tokens the output is {tuple(out.shape)}, not (B, nh, T, hs)")
        check_piece(out[0, 0], right[0, 0, new], start)
        if not torch.allclose(out, right[:, :, new], atol=1e-5):
            raise Wrong(f"after {start} tokens, other rows or heads than the first are wrong")
        answer.attend(-q[:, :, new], -k[:, :, new], 5 * v[:, :, new], other)  # another layer
        start += T


def check_piece(weights, right, n: int) -> None:
    """What the new tokens at positions n, n + 1, … give to each position."""
    if not torch.isfinite(weights).all():
        raise Wrong(f"after {n} tokens, a new one has nan: a row that is masked whole")
    if weights.max() > 1.001:
        raise Wrong("a second cache, of another layer, changes the first: keep nothing elsewhere")
    for i, row in enumerate(weights):
        seen = set((row > 0).nonzero().flatten().tolist())
        if seen - set(range(n + i + 1)):
            raise Wrong(f"position {n + i} attends to position {max(seen)}, in its future: "
                        "mask among the new tokens, and put them after the cache")  # fmt: skip
        for j in set(range(n + i + 1)) - seen:
            why = "it is not in the cache" if j < n else "it is among the new tokens"
            if j < n and seen == set(range(i + 1)):
                why = "the mask takes the new tokens for the first ones, shift its diagonal by n"
            raise Wrong(f"position {n + i} does not attend to position {j}: {why}")
    if not torch.allclose(weights, right, atol=1e-5):
        why = "is √hs missing, or do keys and values differ in order?"
        raise Wrong(f"after {n} tokens the new ones give their weights in the wrong proportions: "
                    f"{why}")  # fmt: skip
