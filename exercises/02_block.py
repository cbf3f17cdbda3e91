"""Exercise 2, stage 0: the block, in GPT-2's order.

A block adds to the residual stream twice: what the tokens tell each other (attention), and what
each makes of it (the MLP). GPT-2 normalizes what a part reads, never the stream itself (pre-norm):

    x ← x + attn(ln_1(x))
    x ← x + mlp(ln_2(x))

The first Transformer normalized the sum, ln_1(x + attn(x)) (post-norm), which is harder to train
when deep. The MLP widens each token to 4 C, applies GELU, and projects back to C. GPT-2 computes
GELU as

    0.5 x (1 + tanh(√(2/π) (x + 0.044715 x³)))

(Radford et al., 2019, section 2.3; Hendrycks and Gimpel, 2016, for GELU.)
"""

import torch


def block(x: torch.Tensor, ln_1, attn, ln_2, mlp) -> torch.Tensor:
    """x: (B, T, C). The four parts are functions from (B, T, C) to (B, T, C). Returns the same."""
    raise NotImplementedError


def mlp(x: torch.Tensor, c_fc, c_proj) -> torch.Tensor:
    """x: (B, T, C). c_fc maps (B, T, C) to (B, T, 4 C), and c_proj maps that back."""
    raise NotImplementedError


# region Hint. Fold this away; open it when you are stuck.
#
# The block is two lines, each of the form x = x + part(norm(x)): the second one reads what the
# first one wrote. torch.nn.functional.gelu computes GELU exactly, by erf, unless it is told
# approximate="tanh". It goes between the two products: without it, they would amount to a single
# matrix.
# endregion
