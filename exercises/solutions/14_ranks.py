import numpy as np
import torch

from common.run.ranks import Ranks

FILE = "common/run/batches.py"


def answer(module) -> dict:
    def windows_of(step, rank, world_size, B, n_windows):
        taken = []

        class Noted(module.RankBatches):
            def _window(self, i):
                ahead, place = divmod(i, self.n_windows)
                taken.append((self.epoch + ahead, place))
                return super()._window(i)

        ranks = Ranks(torch.device("cpu"), rank, world_size)
        batches = Noted(np.arange(n_windows + 1), B, 1, 0, ranks)
        for _ in range(step + 1):
            next(batches)
        return taken[-B:]

    return {"windows_of": windows_of}


WRONG = {
    "both take": [("self.position + self.ranks.rank * self.B", "self.position")],
    "is taken for the second time": [
        ("self.advance(self.ranks.world_size * self.B)", "self.advance(self.B)")],
    "is left out": [("(self.ranks.world_size * self.B)", "(self.ranks.world_size * self.B + 1)")],
    "the epoch comes first": {
        "windows_of": lambda step, rank, world_size, B, n_windows: [
            divmod((step * world_size + rank) * B + i, n_windows)[::-1] for i in range(B)]},
    "go on with the next epoch": {
        "windows_of": lambda step, rank, world_size, B, n_windows: [
            (0, (step * world_size + rank) * B + i) for i in range(B)]},
    "windows, not B": {
        "windows_of": lambda step, rank, world_size, B, n_windows: [
            divmod(step * world_size * B + i, n_windows) for i in range(world_size * B)]},
}  # fmt: skip
