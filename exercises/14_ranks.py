"""Exercise 14, stage 7: which windows a rank takes.

Data parallel training: each of world_size processes (ranks) has a copy of the model, takes B
windows of its own at each step, and the gradients are averaged. All ranks draw the same order of
windows from (seed, epoch), so no rank needs to tell another what it takes. The order of epoch 0,
then that of epoch 1, and so on, are one endless stream. A step takes the next world_size · B
windows of the stream, and the ranks share them: no window twice, none left out.

A run with 2 ranks then equals a run with 1 rank that accumulates 2 micro-batches, and all that a
checkpoint needs of the stream is how far it has come.
(Li et al., 2020, PyTorch Distributed: data parallel training.)
"""


def windows_of(
    step: int, rank: int, world_size: int, B: int, n_windows: int
) -> list[tuple[int, int]]:
    """The B windows that a rank takes at a step, both counted from 0, as pairs: the epoch, and the
    place in that epoch's order, 0 to n_windows - 1."""
    raise NotImplementedError


# region Hint. Fold this away; open it when you are stuck.
#
# Place in the stream first, epoch later. Before this step, all ranks together have taken step ·
# world_size · B windows; of this step's, rank · B belong to the ranks before. divmod(place,
# n_windows) is the epoch and the place in it, even where a batch holds the end of an epoch.
# endregion
