"""Exercise 10, stage 5: model FLOPs utilization (MFU).

How close does a training step come to what the machine can do? Count the FLOPs of the formulas, not
those that an implementation happens to execute, and divide the FLOPs per second by the machine's
peak.

A weight of a matrix costs one multiplication and one addition per token forward, and twice that
backward, once for the gradient of the input and once for its own: 6 FLOPs. Attention's products of
T queries and T keys, and of T weights and T values, have no weights of their own: 12 C T per layer
and token, forward and backward. GPT-2's matrices are 12 C² weights a layer (4 C² in attention, 8 C²
in the MLP) and the head, vocab · C. An embedding look-up is not a product, and biases and
LayerNorms are too small to count:

    FLOPs per token = 6 · (n_layer · 12 C² + vocab · C) + 12 · n_layer · C · T

(PaLM, Chowdhery et al., 2022, appendix B.)
"""


def flops_per_token(n_layer: int, n_embd: int, vocab_size: int, T: int) -> int:
    """Forward and backward, for rows of T tokens. n_embd is C."""
    raise NotImplementedError


def mfu(tokens: int, ms: float, flops_per_token: int, peak: float) -> float:
    """The share of the peak (FLOP/s), 0 to 1, that a step of `tokens` tokens in `ms` milliseconds
    reaches."""
    raise NotImplementedError


# region Hint. Fold this away; open it when you are stuck.
#
# The first is the formula. GPT-2 124M costs 854,438,400 FLOPs per token at T = 1024, and attention
# is 13 % of that. The second: FLOP/s are FLOPs per token times tokens per second, and a second has
# 1,000 ms.
# endregion
