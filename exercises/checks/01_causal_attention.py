"""Values that are the rows of a unit matrix make the output the matrix of weights itself."""

import torch

from exercises.marking import Wrong

READY_MADE = {"scaled_dot_product_attention", "MultiheadAttention", "multi_head_attention_forward"}
T = 6


def check(answer) -> None:
    q, k = torch.randn(2, 1, 1, T, T)
    out = answer.causal_attention(q, k, torch.eye(T).expand(1, 1, T, T))
    if out.shape != q.shape:
        raise Wrong(f"the output has the shape {tuple(out.shape)}, not that of q: (B, nh, T, hs)")
    weights = out[0, 0]  # [i, j]: what position i gives to position j
    if weights.isnan().any():
        row = int(weights.isnan().any(1).nonzero()[0])
        raise Wrong(f"position {row} has nan: a row that is masked whole, its own place too?")
    check_mask(weights)
    check_sums(weights)
    check_scale(weights, q[0, 0], k[0, 0])
    check_heads(answer)


def check_mask(weights) -> None:
    for i in range(T):
        seen = weights[i].nonzero().flatten().tolist()
        if seen and seen[-1] > i:
            raise Wrong(f"position {i} attends to position {seen[-1]}, which is in its future: "
                        "mask the scores with j > i")  # fmt: skip
        for j in set(range(i + 1)) - set(seen):
            raise Wrong(f"position {i} does not attend to position {j}: mask only j > i, the "
                        "triangle above the diagonal")  # fmt: skip


def check_sums(weights) -> None:
    sums = weights.sum(1)
    if not torch.allclose(sums, torch.ones(T), atol=1e-5):
        i = int((sums - 1).abs().argmax())
        if torch.allclose(weights.sum(0), torch.ones(T), atol=1e-5):
            raise Wrong(f"the weights of position {i} sum to {sums[i]:.2f}, those of a key to 1: "
                        "the softmax is over the wrong dimension, take the last")  # fmt: skip
        raise Wrong(f"the weights of position {i} sum to {sums[i]:.2f}, not to 1: mask before the "
                    "softmax, with -inf")  # fmt: skip


def check_scale(weights, q, k) -> None:
    """The logarithm of two weights' ratio is the difference of their scores."""
    scores = q @ k.T
    raw = (scores[-1, 1:] - scores[-1, :1]).double()
    factor = ((weights[-1, 1:] / weights[-1, :1]).log() / raw).mean().item() * T**0.5
    if abs(factor - T**0.5) < 1e-3:
        raise Wrong(f"the scores are {factor:.2f} times too large: divide q kᵀ by √hs")
    if abs(factor - T**-0.5) < 1e-3:
        raise Wrong("the scores are √hs times too small: divide q kᵀ by √hs, not by hs")
    right = torch.softmax((scores / T**0.5).masked_fill(weights == 0, -torch.inf), dim=-1)
    if torch.allclose(weights.log()[-1], (scores.T / T**0.5).log_softmax(-1)[-1], atol=1e-4):
        raise Wrong("queries and keys are swapped: row i of q kᵀ is what position i asks")
    i = int((weights - right).abs().amax(1).argmax())
    if not torch.allclose(weights[i], right[i], atol=1e-5):
        raise Wrong(f"position {i} gives its weights in the wrong proportions: "
                    f"{numbers(weights[i])}, not {numbers(right[i])}")  # fmt: skip


def check_heads(answer) -> None:
    """Several rows and heads, and hs of 3, which is not T."""
    q, k, v = torch.randn(3, 2, 3, T, 3)
    out = answer.causal_attention(q, k, v)
    alone = answer.causal_attention(q[1:, 2:], k[1:, 2:], v[1:, 2:])
    if out.shape != q.shape or not torch.allclose(out[1:, 2:], alone, atol=1e-5):
        raise Wrong("with 2 rows and 3 heads, a head's output is not what it is alone: work on the "
                    "last two dimensions")  # fmt: skip
    scores = (q @ k.mT / 3**0.5).masked_fill(torch.ones(T, T).triu(1) > 0, -torch.inf)
    if not torch.allclose(out, scores.softmax(-1) @ v, atol=1e-5):
        raise Wrong(f"right where hs = T = {T}, and wrong where hs = 3: divide by the root of hs, "
                    "the size of a head")  # fmt: skip


def numbers(row) -> str:
    return " ".join(f"{x:.2f}" for x in row)
