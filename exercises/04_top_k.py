"""Exercise 4, stage 1: the next token, drawn from the k most probable ones.

The logits after the last token are a prediction: softmax(logits / temperature). A temperature below
1 makes likely tokens likelier, one above 1 makes all more alike, and 0 means to take the most
probable one (greedy). Improbable tokens are so many that, together, they are drawn too often. Top-k
sampling keeps only the k most probable tokens and rescales their probabilities to sum to 1.
(Fan et al., 2018, section 5.4; Radford et al., 2019, sampled with k = 40.)
"""

import torch


def next_ids(logits: torch.Tensor, temperature: float, top_k: int, seed: int) -> torch.Tensor:
    """logits: (B, vocab). Returns ids (B, 1) int64, each row drawn on its own. The same seed gives
    the same ids."""
    raise NotImplementedError


# region Hint. Fold this away; open it when you are stuck.
#
# Temperature 0 comes first, since nothing can be divided by it: logits.argmax(-1, keepdim=True).
# logits.topk(top_k) returns two tensors (B, k): the largest logits, and their ids (the candidates).
# Draw from the softmax of the first with torch.multinomial(probabilities, 1, generator=...), where
# the generator is torch.Generator().manual_seed(seed). That draws a place among the k candidates, 0
# to k - 1; the id at that place is candidates.gather(-1, choice).
# endregion
