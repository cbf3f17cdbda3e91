"""Tokens for training: a text as ids, a held-out end cut off once, and batches of windows."""

from dataclasses import dataclass
from pathlib import Path
from textwrap import fill

import numpy as np
import torch

from common.cli import UserError
from common.corpus import read_corpus
from common.tokenizer import VOCAB_SIZE, gpt2_tokenizer

HELD_OUT_SHARE = 10  # one token in ten is held out,
HELD_OUT_MOST = 2**14  # but no more than this: evaluation stays affordable


@dataclass(frozen=True)
class Tokens:
    """A text as ids (N,), uint16 in memory or mapped from a file, cut into what is trained on and
    the end that is held out."""

    train: np.ndarray
    held_out: np.ndarray


def load_tokens(data: str) -> Tokens:
    """The tokens of a corpus (see corpus.py) or of a .npy file of ids, which is mapped: looked
    through once, for ids that are not GPT-2's, and never held in memory.

    Prints which text it is, from where, and how many tokens. Raises UserError for a text that
    can't be read and for a file that does not hold GPT-2's ids.
    """
    if data.endswith(".npy"):
        ids, name, source = _map_ids(Path(data).expanduser()), data, "a file of ids, mapped"
    else:
        corpus = read_corpus(data)
        ids = np.array(gpt2_tokenizer().encode_ordinary(corpus.text), dtype=np.uint16)
        name, source = corpus.name, corpus.source
    n = held_out_size(len(ids), data)
    print(f"text: {name}, {len(ids):,} tokens, the last {n:,} of them held out")
    print(fill(f"source: {source}", 79, initial_indent="  ", subsequent_indent="    "))
    return Tokens(ids[:-n], ids[-n:])


def held_out_size(n_tokens: int, data: str) -> int:
    """How many tokens at the end of a text are held out. Raises UserError if it is too short."""
    n = min(n_tokens // HELD_OUT_SHARE, HELD_OUT_MOST)
    if n < 2:
        raise UserError(f"{data} has {n_tokens} tokens, too few to hold some out: give 20 or more")
    return n


def _map_ids(path: Path) -> np.ndarray:
    try:
        ids = np.load(path, mmap_mode="r")
    except (OSError, ValueError, EOFError) as error:
        raise UserError(f"{path} is no .npy file of ids: {error}") from None
    if not isinstance(ids, np.ndarray):
        raise UserError(f"{path} is a zip archive: give a .npy file of ids")
    if ids.ndim != 1 or ids.dtype.kind not in "iu":
        raise UserError(
            f"{path} holds {ids.dtype} of shape {ids.shape}: give integers of shape (N,)"
        )
    if len(ids) and (ids.min() < 0 or ids.max() >= VOCAB_SIZE):
        raise UserError(
            f"{path} has ids from {ids.min()} to {ids.max()}: GPT-2's go from 0 to {VOCAB_SIZE - 1}"
        )
    return ids


class Batches:
    """An endless stream of batches x, y (B, T) int64, y being x one token later.

    The tokens are cut into windows of T = block_size. An epoch is a permutation of all of them,
    drawn from (seed, epoch), and the epochs follow one another as one stream of windows: each
    window comes once an epoch, a batch may hold the end of one epoch and the start of the next.
    With several ranks each step takes world_size · B windows of that stream, rank r the r-th B of
    them. All that changes is `epoch` and `position`, the windows of this epoch already taken by
    all ranks together.

    Raises UserError if the tokens do not fill one batch.
    """

    def __init__(self, tokens, batch_size, block_size, seed=0, rank=0, world_size=1):
        self.tokens, self.B, self.T, self.seed = tokens, batch_size, block_size, seed
        self.rank, self.world_size = rank, world_size
        self.n_windows = max(0, len(tokens) - 1) // block_size
        self.tail = max(0, len(tokens) - 1) - self.n_windows * block_size  # tokens never predicted
        self.epoch = self.position = 0
        self._orders = {}  # epoch → its permutation, of this epoch and the next
        if self.n_windows < batch_size * world_size:
            raise UserError(
                f"{len(tokens):,} tokens are {self.n_windows} windows of {block_size}, fewer than "
                f"a batch of {batch_size * world_size}: give more text, or a smaller --batch-size "
                "or --block-size"
            )

    def __iter__(self):
        return self

    def __next__(self) -> tuple[torch.Tensor, torch.Tensor]:
        first = self.position + self.rank * self.B
        rows = [self._window(first + i) for i in range(self.B)]
        epochs, self.position = divmod(self.position + self.world_size * self.B, self.n_windows)
        self.epoch += epochs
        window = torch.from_numpy(np.stack(rows).astype(np.int64))  # (B, T + 1)
        return window[:, :-1].contiguous(), window[:, 1:].contiguous()

    def _window(self, i: int) -> np.ndarray:
        """The i-th window counted from the start of this epoch, (T + 1,)."""
        ahead, i = divmod(i, self.n_windows)
        start = self._order(self.epoch + ahead)[i] * self.T
        return self.tokens[start : start + self.T + 1]

    def _order(self, epoch: int) -> np.ndarray:
        if epoch not in self._orders:
            self._orders = {e: o for e, o in self._orders.items() if e == self.epoch}
            rng = np.random.default_rng((self.seed, epoch))
            self._orders[epoch] = rng.permutation(self.n_windows)
        return self._orders[epoch]

    def state(self) -> dict[str, int]:
        """Where the stream stands, the same on every rank."""
        return {"epoch": self.epoch, "position": self.position}

    def restore(self, state: dict[str, int]) -> None:
        """Go on from a state(); the next batches are those that would have come."""
        self.epoch, self.position = state["epoch"], state["position"]
