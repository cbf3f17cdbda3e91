"""Exercise 16, stage 9: the cache of keys and values.

No position looks ahead, so the keys and values of a token never change once it has been read. To
decode, keep them: the prompt is read in one pass, then each new token alone. Its query is compared
with the keys of all tokens so far, its own included.

    new query i of T, after n tokens in the cache, is at position n + i and attends to the
    positions 0 to n + i

The mask is therefore (T, n + T), and its diagonal is n places to the right of the usual one.
(Vaswani et al., 2017, for attention; Pope et al., 2022, section 3, for the cache.)
"""

import torch


def attend(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, cache: dict) -> torch.Tensor:
    """q, k, v: (B, nh, T, hs), those of T new tokens alone. cache is {} at first; keep in it what
    you need, for later calls with the tokens after these. Returns (B, nh, T, hs): what causal
    attention over all tokens so far gives for the new ones."""
    raise NotImplementedError


# region Hint. Fold this away; open it when you are stuck.
#
# If there is something in the cache, torch.cat((cache["k"], k), dim=2), and the same for v; store
# both. Then it is exercise 1 with k and v of S = n + T tokens: the scores are (T, S), and the mask
# is torch.ones(T, S).triu(S - T + 1). F.scaled_dot_product_attention(is_causal=True) would start
# the diagonal at the left, as if the new tokens were the first ones.
# endregion
