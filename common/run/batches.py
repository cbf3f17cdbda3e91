"""Batches for a long run: split between ranks, prefetched by a thread, resumable."""

import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch

from common.data import Batches


class RankBatches(Batches):
    """One rank's part of a stream of batches. At each step all ranks together take world_size · B
    windows of one stream; rank r takes the r-th B of them. From the second epoch on, the windows
    are shifted by a random offset, so a model that sees the text often overfits later."""

    def __init__(self, tokens, batch_size, block_size, seed=0, rank=0, world_size=1):
        super().__init__(tokens, batch_size, block_size, seed)
        self.rank, self.world_size = rank, world_size
        self.check(batch_size * world_size)

    def __next__(self) -> tuple[torch.Tensor, torch.Tensor]:
        batch = self.batch_at(self.position + self.rank * self.B)
        self.advance(self.world_size * self.B)
        return batch

    def starts(self, epoch: int) -> np.ndarray:
        shift = np.random.default_rng((self.seed, epoch, 1)).integers(self.T) if epoch else 0
        return np.minimum(super().starts(epoch) + shift, len(self.tokens) - 1 - self.T)

    def state(self) -> dict[str, int]:
        """The position in the stream, the same on every rank."""
        return {"epoch": self.epoch, "position": self.position}

    def restore(self, state: dict[str, int]) -> None:
        """Resume at a state(): the next batches are those that would have come."""
        self.epoch, self.position = state["epoch"], state["position"]


class Prefetcher:
    """Batches, each read by a thread during the step before; for a GPU, into pinned memory.
    `waited` is the total time in seconds that steps waited for a batch."""

    def __init__(self, batches: RankBatches, pin: bool):
        self.batches, self.pin, self.waited = batches, pin, 0.0
        self.pool, self.next, self.position = ThreadPoolExecutor(1), None, batches.state()

    def _read(self) -> tuple:
        x, y = next(self.batches)
        return (x.pin_memory(), y.pin_memory()) if self.pin else (x, y), self.batches.state()

    def __next__(self) -> tuple[torch.Tensor, torch.Tensor]:
        start = time.perf_counter()
        batch, self.position = (self.next or self.pool.submit(self._read)).result()
        self.waited += time.perf_counter() - start
        self.next = self.pool.submit(self._read)
        return batch

    def state(self) -> dict[str, int]:
        """The position after the batches taken; prefetched ones do not count."""
        return self.position

    def restore(self, state: dict[str, int]) -> None:
        """Resume at a state(), before any batch is taken."""
        self.batches.restore(state)
        self.position = state
