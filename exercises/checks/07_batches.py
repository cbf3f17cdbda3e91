"""The tokens are 0, 1, 2, …, so that a window shows where it comes from. 40 tokens are 9 windows of
4, and 4.5 batches of 2."""

import itertools

import numpy as np
import torch

from exercises.marking import Wrong

B, T, N_WINDOWS = 2, 4, 9


def stream(answer, seed: int):
    return iter(answer.batches(np.arange(40, dtype=np.uint16), B, T, seed))


def starts(answer, seed: int = 1, epochs: int = 2) -> list[int]:
    """Where the windows of so many epochs start. Checks each batch."""
    found = []
    try:
        batches = list(itertools.islice(stream(answer, seed), -(-epochs * N_WINDOWS // B)))
    except (IndexError, ValueError, RuntimeError) as error:
        if isinstance(error, NotImplementedError):
            raise
        raise Wrong(f"{error}: is there a window too many? 40 tokens are {N_WINDOWS} windows of "
                    f"{T}, since the last one needs a last target") from None  # fmt: skip
    for x, y in batches:
        check_batch(x, y)
        found += x[:, 0].tolist()
    return found[: epochs * N_WINDOWS]


def check_batch(x, y) -> None:
    for name, ids in (("x", x), ("y", y)):
        if ids.shape[0] < B:
            raise Wrong(f"a batch has {len(ids)} row, not {B}: where an epoch ends, fill it from "
                        "the next epoch")  # fmt: skip
        if ids.shape != (B, T) or ids.dtype != torch.int64:
            raise Wrong(f"{name} is {tuple(ids.shape)} of {ids.dtype}, not {(B, T)} of torch.int64")
    if torch.equal(x, y):
        raise Wrong("y is x itself: the target of a token is the next one")
    if not torch.equal(y, x + 1):
        raise Wrong(f"for x = {x[0].tolist()} of the text 0 1 2 3 …, y is {y[0].tolist()}")
    if (x[:, 0] % T).any():
        start = int(x[x[:, 0] % T > 0][0, 0])
        raise Wrong(f"a window starts at token {start}: windows of {T} lie side by side, so they "
                    f"start at multiples of {T}")  # fmt: skip


def check(answer) -> None:
    found = starts(answer)
    if len(found) < 2 * N_WINDOWS:
        raise Wrong(f"the batches end after {len(found) // B}: they never should")
    one, two = found[:N_WINDOWS], found[N_WINDOWS:]
    for epoch, windows in enumerate((one, two)):
        if len(set(windows)) < N_WINDOWS:
            raise Wrong(why_not_once(found, epoch, windows))
    if one == sorted(one):
        raise Wrong("the windows come in the order of the text: shuffle them")
    if one == two:
        raise Wrong("epoch 1 has the order of epoch 0: draw each from (seed, epoch)")
    pair = (stream(answer, 1), stream(answer, 1))
    for _ in range(N_WINDOWS):  # by turns, so that a generator that they share is found
        if not torch.equal(next(pair[0])[0], next(pair[1])[0]):
            raise Wrong("the same seed gives another order: draw from a generator of its own, made "
                        "from (seed, epoch)")  # fmt: skip
    other = starts(answer, 2)
    if other == found:
        raise Wrong("seeds 1 and 2 give the same order: draw it from (seed, epoch)")
    if other[:N_WINDOWS] == two:
        raise Wrong("epoch 1 of seed 1 has the order of epoch 0 of seed 2: seed with the pair "
                    "(seed, epoch), not with their sum")  # fmt: skip


def why_not_once(found: list[int], epoch: int, windows: list[int]) -> str:
    full = N_WINDOWS // B * B
    if len(set(found[:full])) == full == len(set(found[full : 2 * full])):
        return (f"an epoch ends after {full} of its {N_WINDOWS} windows: fill the last batch from "
                "the next epoch")  # fmt: skip
    window = max(windows, key=windows.count)
    return (f"in epoch {epoch} the window at token {window} comes {windows.count(window)} times, "
            f"and {N_WINDOWS - len(set(windows))} never: an epoch is a permutation")  # fmt: skip
