"""Stage 7: batches shared between ranks, and resumable."""

import numpy as np
import pytest
import torch

from common.data import Batches
from common.kit.cli import UserError
from common.run.batches import RankBatches
from common.run.ranks import Ranks

CPU = torch.device("cpu")


def starts(batches, n):
    """The first ids of the rows of the next n batches; the tokens must be 0, 1, 2, …"""
    return [int(row[0]) for _ in range(n) for row in next(batches)[0]]


@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_ranks_are_disjoint_and_together_one_order(world_size):
    tokens, B = np.arange(1001), 12 // world_size
    ranks = [RankBatches(tokens, B, 10, 5, Ranks(CPU, r, world_size)) for r in range(world_size)]
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
    RankBatches(tokens, 3, 10, 5, Ranks(CPU))
    with pytest.raises(UserError, match="3 windows of 10, fewer than a batch of 4"):
        RankBatches(tokens, 2, 10, 5, Ranks(CPU, 0, 2))


@pytest.mark.parametrize("taken", [0, 1, 7, 24, 25, 26, 80])
def test_state_restores_exactly(taken):
    def fresh():
        return RankBatches(np.arange(777), 4, 7, 9, Ranks(CPU))

    batches = fresh()
    starts(batches, taken)
    state = batches.state()
    assert state.keys() == {"epoch", "position"} and all(type(v) is int for v in state.values())
    resumed = fresh()
    resumed.restore(state)
    assert starts(resumed, 60) == starts(batches, 60)
