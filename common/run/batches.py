"""Batches for a long run: split between ranks, resumable."""

import numpy as np
import torch

from common.data import Batches
from common.run.ranks import Ranks


class RankBatches(Batches):
    """One rank's part of a stream of batches. At each step all ranks together take world_size · B
    windows of one stream; rank r takes the r-th B of them. From the second epoch on, the windows
    are shifted by a random offset, which delays overfitting."""

    def __init__(self, tokens, batch_size: int, block_size: int, seed: int, ranks: Ranks):
        super().__init__(tokens, batch_size, block_size, seed)
        self.ranks = ranks
        self.check(batch_size * ranks.world_size)

    def __next__(self) -> tuple[torch.Tensor, torch.Tensor]:
        x, y = self.batch_at(self.position + self.ranks.rank * self.B)
        self.advance(self.ranks.world_size * self.B)
        # From pinned memory, the copy to a GPU can be asynchronous.
        return (x.pin_memory(), y.pin_memory()) if self.ranks.device.type == "cuda" else (x, y)

    def starts(self, epoch: int) -> np.ndarray:
        shift = np.random.default_rng((self.seed, epoch, 1)).integers(self.T) if epoch else 0
        return np.minimum(super().starts(epoch) + shift, len(self.tokens) - 1 - self.T)

    def state(self) -> dict[str, int]:
        """The position in the stream, the same on every rank."""
        return {"epoch": self.epoch, "position": self.position}

    def restore(self, state: dict[str, int]) -> None:
        """Resume at a state(): the next batches are those that would have come."""
        self.epoch, self.position = state["epoch"], state["position"]
