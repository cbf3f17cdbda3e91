import itertools

import numpy as np
import torch

FILE = "common/data.py"


def answer(module) -> dict:
    return {"batches": module.Batches}


def short_batches(tokens, B, T, seed):
    """An epoch's last batch has what is left."""
    for epoch in itertools.count():
        order = np.random.default_rng((seed, epoch)).permutation((len(tokens) - 1) // T)
        for i in range(0, len(order), B):
            rows = [tokens[j * T : j * T + T + 1].astype(np.int64) for j in order[i : i + B]]
            windows = torch.from_numpy(np.stack(rows))
            yield windows[:, :-1], windows[:, 1:]


WRONG = {
    "windows of 4 lie side by side": [
        ("start = self._order(self.epoch + ahead)[i]",
         "start = self._order(self.epoch + ahead)[i]; start += start // self.T % 2")],
    "y is x itself": [("windows[:, 1:]", "windows[:, :-1]")],
    "y is [": [("windows[:, 1:]", "2 * windows[:, 1:]")],
    "not (2, 4) of torch.int64": [("astype(np.int64)", "astype(np.int32)")],
    "shuffle them": [("np.random.default_rng((self.seed, epoch)).permutation", "np.arange")],
    "epoch 1 has the order of epoch 0": [("(self.seed, epoch)", "self.seed")],
    "another order": [("default_rng((self.seed, epoch))", "default_rng()")],
    "seeds 1 and 2 give": [("(self.seed, epoch)", "(0, epoch)")],
    "not with their sum": [("default_rng((self.seed, epoch))", "default_rng(self.seed + epoch)")],
    "an epoch ends after 8": [
        ("n_windows, self.n_windows)", "n_windows, self.n_windows // 2 * 2)")],
    "times, and": [("return np.random.default_rng((self.seed, epoch)).permutation(self.n_windows)",
                    "rng = np.random.default_rng((self.seed, epoch))\n"
                    "        fewer = rng.permutation(self.n_windows - 2)\n"
                    "        return np.resize(fewer, self.n_windows)")],
    "is there a window too many": [("max(0, len(tokens) - 1) //", "len(tokens) //")],
    "the batches end": [("def __iter__(self):\n        return self",
                         "def __iter__(self):\n        return iter([next(self)] * 4)")],
    "a batch has 1 row": {"batches": short_batches},
}  # fmt: skip
