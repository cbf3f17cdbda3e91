"""Evaluation split between ranks: each takes every world_size-th batch, and the sums are added."""

from collections.abc import Callable

import torch

from common.evals import Evaluation, eval_batches, evaluation, loss_of_batch
from common.hellaswag import HellaSwag, count_right, question_batches, score
from common.run.ranks import Ranks


@torch.no_grad()
def in_turns(model, batches: list, work: Callable, ranks: Ranks) -> list:
    """work(batch) for this rank's share of the batches, with the model in evaluation mode. All
    ranks call work the same number of times, as a sharded model requires."""
    was_training, results = model.training, []
    model.eval()
    for turn in range(0, len(batches), ranks.world_size):
        mine = turn + ranks.rank
        result = work(batches[min(mine, len(batches) - 1)])
        if mine < len(batches):
            results.append(result)
    model.train(was_training)
    return results


def evaluate_on_ranks(model, ids, block_size: int, batch_size: int, ranks: Ranks) -> Evaluation:
    """Like common.evals.evaluate, but split between all ranks."""
    batches = eval_batches(ids, block_size, batch_size)
    losses = in_turns(model, batches, lambda batch: loss_of_batch(model, *batch), ranks)
    return evaluation(sum(ranks.gather(losses), []), ids)


def hellaswag_on_ranks(
    model, questions, wording: Callable, batch_size: int, ranks: Ranks
) -> HellaSwag:
    """Like common.hellaswag.hellaswag, but split between all ranks."""
    batches = question_batches(questions, wording, model.config, batch_size)
    counts = in_turns(model, batches, lambda batch: count_right(model, batch), ranks)
    return score(sum(ranks.gather(counts), []), len(questions))
