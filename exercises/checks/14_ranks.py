"""What all ranks take together is the stream itself: 9 windows an epoch, 2 a rank and step."""

from exercises.marking import Wrong

READY_MADE = {"DistributedSampler"}
B, N_WINDOWS, STEPS = 2, 9, 6


def check(answer) -> None:
    for world_size in (1, 3):
        for step in range(STEPS):
            ranks = range(world_size)
            taken = [answer.windows_of(step, rank, world_size, B, N_WINDOWS) for rank in ranks]
            check_step(step, world_size, [[tuple(w) for w in windows] for windows in taken])


def check_step(step: int, world_size: int, taken: list) -> None:
    at = f"with world_size {world_size}, at step {step}, "
    for rank, windows in enumerate(taken):
        if len(windows) != B:
            raise Wrong(f"{at}rank {rank} takes {len(windows)} windows, not B = {B}")
        for epoch, place in windows:
            if not 0 <= place < N_WINDOWS:
                raise Wrong(f"{at}rank {rank} takes window {place} of epoch {epoch}, which has "
                            f"{N_WINDOWS}: go on with the next epoch")  # fmt: skip
        for other in range(rank):
            if both := set(windows) & set(taken[other]):
                raise Wrong(f"{at}ranks {other} and {rank} both take {words(min(both))}: start "
                            "rank · B further on")  # fmt: skip
    found = {window for windows in taken for window in windows}
    first = step * world_size * B
    right = {divmod(place, N_WINDOWS) for place in range(first, first + world_size * B)}
    if found == {(place, epoch) for epoch, place in right} != right:
        raise Wrong(f"{at}the pairs are (place, epoch): the epoch comes first")
    if min(found) < min(right):
        raise Wrong(f"{at}{words(min(found))} is taken for the second time: a step takes "
                    "world_size · B windows of the stream, each of its own epoch")  # fmt: skip
    if found != right:
        raise Wrong(f"{at}{words(min(right - found))} is left out: a step takes the next "
                    "world_size · B windows of the stream, across epochs")  # fmt: skip


def words(window: tuple[int, int]) -> str:
    return f"window {window[1]} of epoch {window[0]}"
