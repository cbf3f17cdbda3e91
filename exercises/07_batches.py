"""Exercise 7, stage 3: batches of windows, epoch after epoch.

A text of N tokens is cut into windows of T, side by side. The target of a window's last token is
the first token of the next window, so the text has (N - 1) // T windows, not N // T.

An epoch visits each window once, in an order drawn from (seed, epoch): a different order in each
epoch, the same orders in each run. If the windows do not fill a whole number of batches, a batch
holds the end of one epoch and the start of the next: no window is left out.
"""

from collections.abc import Iterator

import numpy as np
import torch


def batches(
    tokens: np.ndarray, B: int, T: int, seed: int
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """tokens: (N,) uint16. Yields, endlessly, x and y of shape (B, T), int64: y is x one token
    later."""
    raise NotImplementedError


# region Hint. Fold this away; open it when you are stuck.
#
# A function with yield in it is a generator. Loop over epochs, and inside that over
# np.random.default_rng((seed, epoch)).permutation(n_windows). Collect rows in a list; when it has
# B, yield them as a batch and empty it. The list outlives an epoch, so nothing is left out. A row
# is tokens[i * T : i * T + T + 1]: T + 1 tokens, of which x drops the last and y the first. torch
# has few operations for uint16: rows.astype(np.int64).
# endregion
