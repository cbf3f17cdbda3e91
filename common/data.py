"""Tokens for training: a text as ids, its end cut off for validation, and batches of windows."""

from dataclasses import dataclass
from functools import lru_cache
from textwrap import fill

import numpy as np
import torch

from common.kit.cli import UserError
from common.kit.corpus import read_corpus
from common.tokenizer import VOCAB_SIZE, gpt2_tokenizer

VAL_SHARE = 10  # one token in ten is for validation,
MAX_VAL = 2**14  # but at most this many, so that an evaluation stays short


@dataclass(frozen=True)
class Tokens:
    """A text as ids, uint16 arrays of shape (N,): the part to train on, and its end, on which the
    validation loss is computed."""

    train: np.ndarray
    val: np.ndarray


def load_tokens(data: str, vocab_size: int = VOCAB_SIZE) -> Tokens:
    """The tokens of the text called data: tinyshakespeare, plays, a text file or a folder of them.

    Prints which text it is, from where, and how many tokens. Raises UserError for a text that
    can't be read or is too short.
    """
    corpus = read_corpus(data)
    ids = np.array(gpt2_tokenizer(vocab_size).encode_ordinary(corpus.text), dtype=np.uint16)
    n = val_size(len(ids), data)
    print(f"text: {corpus.name}, {len(ids):,} tokens, the last {n:,} of them for validation")
    print(fill(f"source: {corpus.source}", 79, initial_indent="  ", subsequent_indent="    "))
    return Tokens(ids[:-n], ids[-n:])


def val_size(n_tokens: int, data: str) -> int:
    """How many tokens at the end of a text are for validation. Raises UserError for too few."""
    n = min(n_tokens // VAL_SHARE, MAX_VAL)
    if n < 2:
        raise UserError(f"{data} has {n_tokens} tokens, too few for validation: give 20 or more")
    return n


class Batches:
    """An endless stream of batches x, y (B, T) int64, where y is x one token later.

    The tokens are cut into windows of T = block_size. An epoch visits every window once, in an
    order drawn from (seed, epoch). Epochs follow one another without a gap: a batch may hold the
    end of one and the start of the next. The only state is `epoch` and `position`, the number of
    windows already taken from this epoch. Raises UserError if the tokens do not fill one batch.
    """

    def __init__(self, tokens, batch_size: int, block_size: int, seed: int = 0):
        self.tokens, self.B, self.T, self.seed = tokens, batch_size, block_size, seed
        self.n_windows = max(0, len(tokens) - 1) // block_size  # - 1: the last target
        self.epoch = self.position = 0
        self._order = lru_cache(2)(self.starts)  # a batch may reach into the next epoch
        self.check(batch_size)

    def check(self, n_windows: int) -> None:
        """Raises UserError if the tokens hold fewer windows than that."""
        if self.n_windows < n_windows:
            raise UserError(
                f"{len(self.tokens):,} tokens are {self.n_windows} windows of {self.T}, fewer than "
                f"a batch of {n_windows}: give more text, or a smaller --batch-size or --block-size"
            )

    def __iter__(self):
        return self

    def __next__(self) -> tuple[torch.Tensor, torch.Tensor]:
        batch = self.batch_at(self.position)
        self.advance(self.B)
        return batch

    def batch_at(self, first: int) -> tuple[torch.Tensor, torch.Tensor]:
        """x and y of the B windows from window `first` of this epoch on."""
        rows = [self._window(i) for i in range(first, first + self.B)]
        windows = torch.from_numpy(np.stack(rows).astype(np.int64))  # (B, T + 1)
        return windows[:, :-1].contiguous(), windows[:, 1:].contiguous()

    def advance(self, n_windows: int) -> None:
        """Count n_windows as taken."""
        epochs, self.position = divmod(self.position + n_windows, self.n_windows)
        self.epoch += epochs

    def _window(self, i: int) -> np.ndarray:
        """Window i of this epoch, (T + 1,). An i beyond its end is in the next epoch."""
        ahead, i = divmod(i, self.n_windows)
        start = self._order(self.epoch + ahead)[i]
        return self.tokens[start : start + self.T + 1]

    def starts(self, epoch: int) -> np.ndarray:
        """Where an epoch's windows start, in the order in which they are taken."""
        return np.random.default_rng((self.seed, epoch)).permutation(self.n_windows) * self.T
