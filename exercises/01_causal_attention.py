"""Exercise 1, stage 0: causal attention.

Each position asks a question (its query q), compares it with the keys k of all positions up to its
own, and takes a mean of their values v, weighted by how well they fit:

    softmax(q kᵀ / √hs) v,  where a position gives no weight to the positions after it

Without the √hs the scores of long vectors would be large, and the softmax nearly one-hot.
(Vaswani et al., 2017, section 3.2.1; the mask is in 3.2.3.)
"""

import torch


def causal_attention(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    """q, k, v: (B, nh, T, hs), for nh heads of size hs. Returns the same shape.
    Don't call F.scaled_dot_product_attention: it is what you are building."""
    raise NotImplementedError


# region Hint. Fold this away; open it when you are stuck.
#
# The scores are q @ k.transpose(-2, -1), of shape (B, nh, T, T): row i holds what position i thinks
# of each position j. Scale them. Set those with j > i to -inf: torch.ones(T, T).triu(1) is 1 there,
# and masked_fill wants it as bool. The softmax is over j, the last dimension, so that a row's
# weights sum to 1. Then multiply by v.
# endregion
