"""How well a model predicts a text: loss, perplexity, bits per byte."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch.nn import functional as F

from common.cli import UserError
from common.tokenizer import gpt2_tokenizer

SEEN = -100  # a target that does not count


@dataclass(frozen=True)
class Evaluation:
    """The loss in nats a token, over `tokens` predicted tokens that stand for `bytes` of text."""

    loss: float
    tokens: int
    bytes: int

    @property
    def perplexity(self) -> float:
        return math.inf if self.loss > 700 else math.exp(self.loss)

    @property
    def bits_per_byte(self) -> float:
        """Comparable between tokenizers, as the loss a token is not."""
        return self.loss * self.tokens / math.log(2) / self.bytes

    def __str__(self):
        return (
            f"loss {self.loss:.4f}, perplexity {self.perplexity:,.2f}, "
            f"{self.bits_per_byte:.4f} bits/byte ({self.tokens:,} tokens)"
        )


def in_turns(model, batches: list, work: Callable, rank: int, world_size: int) -> list:
    """What work makes of this rank's share of the batches, with the model in evaluation. All ranks
    call it equally often, as a model must be that is sharded over them."""
    was_training, results = model.training, []
    model.eval()
    for turn in range(0, len(batches), world_size):
        mine = turn + rank
        with torch.no_grad():
            result = work(batches[min(mine, len(batches) - 1)])
        if mine < len(batches):
            results.append(result)
    model.train(was_training)
    return results


def evaluate(
    model,
    ids: torch.Tensor,
    block_size: int,
    batch_size: int = 4,
    stride: int | None = None,
    rank: int = 0,
    world_size: int = 1,
    sum_over_ranks: Callable[[float], float] = float,
) -> Evaluation:
    """How well model predicts ids (N,) int64 of GPT-2's vocabulary, N of 2 or more.

    A window of block_size slides over the text by `stride` tokens. Each predicts its next token at
    every place, and those count that no window before it predicted: every token but the first
    counts once. By default the stride is block_size, and windows do not overlap; a smaller one
    gives each token more of its past to be predicted from, and takes longer. Raises UserError for a
    larger one, which would leave tokens out.
    """
    if not 1 <= (stride or 1) <= block_size:
        raise UserError(f"--stride is {stride}: give 1 to {block_size}, the block size")
    device, stride, count = next(model.parameters()).device, stride or block_size, len(ids) - 1
    windows, end = [], 0
    while end < count:
        start, old = len(windows) * stride, end
        end = min(start + block_size, count)
        y = ids[start + 1 : end + 1].clone()
        y[: old - start] = SEEN
        windows.append((ids[start:end], y))
    whole = [window for window in windows if len(window[0]) == block_size]
    batches = [whole[i : i + batch_size] for i in range(0, len(whole), batch_size)]
    batches += [[window] for window in windows[len(whole) :]]  # a last, shorter one

    def loss(batch) -> float:
        x, y = (torch.stack(part).to(device) for part in zip(*batch, strict=True))
        logits = model(x)[0].flatten(0, 1).float()
        return F.cross_entropy(logits, y.flatten(), reduction="sum", ignore_index=SEEN).item()

    total = sum_over_ranks(sum(in_turns(model, batches, loss, rank, world_size)))
    n_bytes = len(gpt2_tokenizer().decode_bytes(ids[1:].tolist()))
    return Evaluation(total / count, count, n_bytes)
