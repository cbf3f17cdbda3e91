"""How well a model predicts a text: loss, perplexity, bits per byte."""

import math
from dataclasses import dataclass

import torch
from torch.nn import functional as F

from common.kit.cli import UserError
from common.tokenizer import gpt2_tokenizer

IGNORE = -100  # a target that does not count: cross_entropy's default ignore_index


@dataclass(frozen=True)
class Evaluation:
    """The mean loss in nats over `tokens` predicted tokens, which are `bytes` bytes of text
    (<|endoftext|> has none)."""

    loss: float
    tokens: int
    bytes: int

    @property
    def perplexity(self) -> float:
        """The model is as unsure as a uniform guess among this many tokens."""
        return math.inf if self.loss > 700 else math.exp(self.loss)

    @property
    def bits_per_byte(self) -> float:
        """The sum of all losses in bits, over the bytes of the text. Unlike the loss per token, it
        is comparable between tokenizers, which split the same bytes into different tokens."""
        return self.loss * self.tokens / math.log(2) / (self.bytes or 1)

    def __str__(self):
        return (
            f"loss {self.loss:.4f}, perplexity {self.perplexity:,.2f}, "
            f"{self.bits_per_byte:.4f} bits/byte ({self.tokens:,} tokens)"
        )


@torch.no_grad()
def evaluate(
    model, ids: torch.Tensor, block_size: int, batch_size: int = 4, stride: int | None = None
) -> Evaluation:
    """How well model predicts the text ids (N,) int64, N of 2 or more.

    A window of block_size slides over the text by `stride` tokens (default: block_size, so that
    windows do not overlap). Every token but the first counts once, in the first window that holds
    it. A smaller stride gives a token more context, and takes longer. Raises UserError for a stride
    that would skip tokens.
    """
    was_training = model.training
    model.eval()
    batches = eval_batches(ids, block_size, batch_size, stride)
    losses = [loss_of_batch(model, *batch) for batch in batches]
    model.train(was_training)
    return evaluation(losses, ids)


def eval_batches(ids, block_size: int, batch_size: int, stride: int | None = None) -> list[tuple]:
    """The windows of evaluate as batches x, y (B, T); targets that do not count are IGNORE."""
    if not 1 <= (stride or 1) <= block_size:
        raise UserError(f"--stride is {stride}: give 1 to {block_size}, the block size")
    windows, end, stride = [], 0, stride or block_size
    while end < len(ids) - 1:
        start, previous_end = len(windows) * stride, end
        end = min(start + block_size, len(ids) - 1)
        y = ids[start + 1 : end + 1].clone()
        y[: previous_end - start] = IGNORE  # an earlier window has counted these
        windows.append((ids[start:end], y))
    n = sum(len(x) == block_size for x, _ in windows)
    full, last = windows[:n], windows[n:]  # the last window may be shorter
    groups = [full[i : i + batch_size] for i in range(0, n, batch_size)] + ([last] if last else [])
    return [(torch.stack([x for x, _ in g]), torch.stack([y for _, y in g])) for g in groups]


def loss_of_batch(model, x: torch.Tensor, y: torch.Tensor) -> float:
    """The sum of the losses of the targets y (B, T), in nats. Logits are converted to fp32 row by
    row, to save memory."""
    device = next(model.parameters()).device
    logits, y = model(x.to(device))[0], y.to(device)
    rows = zip(logits, y, strict=True)
    losses = [F.cross_entropy(a.float(), b, reduction="sum", ignore_index=IGNORE) for a, b in rows]
    return torch.stack(losses).sum().item()


def evaluation(losses: list[float], ids: torch.Tensor) -> Evaluation:
    """The result, from the losses of all batches of ids in any order."""
    tokenizer = gpt2_tokenizer()
    text_ids = ids[1:][ids[1:] != tokenizer.eot_token]  # <|endoftext|> is not text
    n_bytes = len(tokenizer.decode_bytes(text_ids.tolist()))
    return Evaluation(math.fsum(losses) / (len(ids) - 1), len(ids) - 1, n_bytes)
