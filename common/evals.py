"""How well a model predicts a text: loss, perplexity, bits per byte."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch.nn import functional as F

from common.tokenizer import gpt2_tokenizer


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


@torch.no_grad()
def evaluate(
    model,
    ids: torch.Tensor,
    block_size: int,
    batch_size: int = 4,
    rank: int = 0,
    world_size: int = 1,
    sum_over_ranks: Callable[[float], float] = float,
) -> Evaluation:
    """How well model predicts ids (N,) int64 of GPT-2's vocabulary, N of 2 or more.

    The text is cut into windows of block_size that do not overlap; each predicts its next token
    at every place, so every token but the first is predicted once, the last window's too. Several
    ranks take the batches in turn; all call the model equally often, as a sharded one must be.
    """
    device = next(model.parameters()).device
    was_training = model.training
    model.eval()
    total, count = 0.0, len(ids) - 1
    whole = count // block_size * block_size
    x, y = ids[:whole].view(-1, block_size), ids[1 : whole + 1].view(-1, block_size)
    batches = list(zip(x.split(batch_size), y.split(batch_size), strict=True)) if whole else []
    if whole < count:  # a last, shorter window
        batches.append((ids[None, whole:-1], ids[None, whole + 1 :]))
    for turn in range(0, len(batches), world_size):
        mine = turn + rank
        x, y = batches[min(mine, len(batches) - 1)]
        logits, _ = model(x.to(device))
        logits, y = logits.flatten(0, 1).float(), y.flatten().to(device)
        loss = F.cross_entropy(logits, y, reduction="sum").item()
        total += loss if mine < len(batches) else 0.0
    model.train(was_training)
    n_bytes = len(gpt2_tokenizer().decode_bytes(ids[1:].tolist()))
    return Evaluation(sum_over_ranks(total) / count, count, n_bytes)
