"""Stage 7: batches shared between ranks, resumable, and read ahead."""

import time

import numpy as np
import pytest

from common.data import Batches
from common.kit.cli import UserError
from common.run.batches import Prefetcher, RankBatches


def starts(batches, n):
    """The first ids of the rows of the next n batches; the tokens must be 0, 1, 2, …"""
    return [int(row[0]) for _ in range(n) for row in next(batches)[0]]


@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_ranks_are_disjoint_and_together_one_order(world_size):
    tokens, B = np.arange(1001), 12 // world_size
    ranks = [RankBatches(tokens, B, 10, 5, rank, world_size) for rank in range(world_size)]
    together = [row for _ in range(25) for rank in ranks for row in starts(rank, 1)]
    one, two, three = (together[i : i + 100] for i in (0, 100, 200))  # batches cross their ends
    assert one == starts(Batches(tokens, 12, 10, 5), 9)[:100]
    shifts = []
    for epoch in (one, two, three):  # of 100 windows of 10, each once; the last may be cut off
        begins = sorted(epoch)[:-1]
        shifts.append(begins[0])
        assert begins == [begins[0] + 10 * i for i in range(99)]
        assert max(epoch) == min(begins[-1] + 10, 990)
    assert shifts[0] == 0 and len(set(shifts)) == 3 and max(shifts) < 10


def test_ranks_ask_for_enough_text_for_all_of_them():
    tokens = np.arange(31)  # three windows of 10
    RankBatches(tokens, 3, 10)
    with pytest.raises(UserError, match="3 windows of 10, fewer than a batch of 4"):
        RankBatches(tokens, 2, 10, rank=0, world_size=2)


@pytest.mark.parametrize("taken", [0, 1, 7, 24, 25, 26, 80])
def test_state_restores_exactly(taken):
    def fresh():
        return RankBatches(np.arange(777), 4, 7, seed=9)

    batches = fresh()
    starts(batches, taken)
    state = batches.state()
    assert state.keys() == {"epoch", "position"} and all(type(v) is int for v in state.values())
    resumed = fresh()
    resumed.restore(state)
    assert starts(resumed, 60) == starts(batches, 60)


def test_prefetched_batches_are_the_same_and_resume_at_those_taken():
    def fresh():
        return RankBatches(np.arange(777), 4, 7, seed=9)

    plain, ahead = fresh(), Prefetcher(fresh(), pin=False)
    assert starts(ahead, 60) == starts(plain, 60)
    assert ahead.state() == plain.state()  # not where the thread has read to
    again = Prefetcher(fresh(), pin=False)
    again.restore(ahead.state())
    assert again.state() == ahead.state() and starts(again, 60) == starts(plain, 60)


def test_a_batch_is_read_during_the_step_before():
    class Slow(RankBatches):
        def __next__(self):
            time.sleep(0.05)
            return super().__next__()

    ahead = Prefetcher(Slow(np.arange(777), 4, 7), pin=False)
    next(ahead)
    first = ahead.waited
    for _ in range(3):
        time.sleep(0.1)  # a training step
        next(ahead)
    assert first >= 0.05 and ahead.waited - first < 0.05
