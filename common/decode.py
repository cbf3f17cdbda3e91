"""Decoding with a KV cache: each token is read only once.

No position looks ahead, so the keys and values of a token never change. The prompt is read at once
(prefill). Then each new token is read alone, with the cached keys and values of the tokens before
it. The model is stage 0's: this module calls its parts one by one.
"""

from collections.abc import Iterator

import torch
import torch.nn as nn
from torch.nn import functional as F

from common.model import GPT, CausalSelfAttention
from common.speed import compiled
from common.tokenizer import VOCAB_SIZE


class GrowingCache(nn.Module):
    """The keys and values of a layer, (B, nh, T, hs). Each step copies them to append a token."""

    def __init__(self, model: GPT, B: int, S: int):
        super().__init__()
        self.k = self.v = None

    def update(self, k, v, positions):
        """Append the keys and values of new tokens at positions (T,). Returns all so far."""
        if positions[0] > 0:
            k, v = torch.cat((self.k, k), dim=2), torch.cat((self.v, v), dim=2)
        self.k, self.v = k, v
        return k, v


class FixedCache(nn.Module):
    """The same, allocated once for S tokens: nothing is copied, and no shape ever changes. The
    places after the last token hold zeros or old values, which the mask hides."""

    def __init__(self, model: GPT, B: int, S: int):
        super().__init__()
        c, weight = model.config, model.transformer.wpe.weight
        shape = (B, c.n_head, S, c.n_embd // c.n_head)
        for name in ("k", "v"):
            self.register_buffer(name, torch.zeros(shape, device=weight.device))

    def update(self, k, v, positions):
        self.k[:, :, positions], self.v[:, :, positions] = k, v
        return self.k, self.v


class Decoder(nn.Module):
    """A model with a cache: B rows of the same length, up to S tokens in each.

    temperature, top_k and top_p are those of `sample`.
    """

    def __init__(
        self, model: GPT, B: int, S: int, cache=FixedCache, temperature=1.0, top_k=None, top_p=1.0
    ):
        super().__init__()
        self.model, self.S = model, S
        self.caches = nn.ModuleList(cache(model, B, S) for _ in model.transformer.h)
        self.temperature, self.top_k, self.top_p = temperature, top_k, top_p

    def forward(self, ids, positions, noise):
        """Read the tokens ids (B, T) at positions (T,). Returns the next ids (B, 1), sampled with
        noise (B, k)."""
        logits = read(self.model, ids, positions, self.caches)
        return sample(logits, noise, self.temperature, self.top_k, self.top_p)


def read(model: GPT, ids: torch.Tensor, positions: torch.Tensor, caches) -> torch.Tensor:
    """Logits (B, vocab) after the last of the tokens ids (B, T), which are at positions (T,). The
    caches hold all tokens before them; these are added."""
    x = model.transformer.wte(ids) + model.transformer.wpe(positions)  # (B, T, C)
    for block, cache in zip(model.transformer.h, caches, strict=True):
        x = x + attend(block.attn, block.ln_1(x), positions, cache)
        x = x + block.mlp(block.ln_2(x))
    x = model.transformer.ln_f(x[:, -1:])  # only the last position predicts a new token
    return model.lm_head(x)[:, 0, :VOCAB_SIZE].float()


def attend(attn: CausalSelfAttention, x, positions, cache) -> torch.Tensor:
    """Like attn(x), x (B, T, C), but its tokens also attend to those in the cache."""
    B, T, C = x.shape
    q, k, v = (
        part.view(B, T, attn.n_head, C // attn.n_head).transpose(1, 2)  # (B, nh, T, hs)
        for part in attn.c_attn(x).split(C, dim=2)
    )
    k, v = cache.update(k, v, positions)  # (B, nh, S, hs)
    scores = q @ k.transpose(-2, -1) / q.size(-1) ** 0.5  # (B, nh, T, S)
    future = torch.arange(k.size(2), device=x.device) > positions[:, None]  # (T, S)
    weights = F.softmax(scores.masked_fill(future, float("-inf")), dim=-1)
    return attn.c_proj((weights @ v).transpose(1, 2).reshape(B, T, C))


def sample(logits, noise, temperature: float, top_k: int | None, top_p: float) -> torch.Tensor:
    """The next ids (B, 1), from logits (B, vocab). Temperature 0 is greedy. top_k samples from the
    k most probable tokens, top_p from the fewest of them whose probabilities add up to p (nucleus
    sampling, Holtzman et al., 2020).

    noise (B, k) comes from outside, so that a compiled step needs no random generator. It is drawn
    from the exponential distribution: then token i has the largest p_i / noise_i with probability
    p_i. torch.multinomial draws in the same way.
    """
    if temperature == 0:
        return logits.argmax(dim=-1, keepdim=True)
    logits, candidates = logits.topk(min(top_k or VOCAB_SIZE, logits.size(-1)))  # (B, k), sorted
    probabilities = torch.softmax((logits - logits[:, :1]) / temperature, dim=-1)
    if top_p < 1:
        before = probabilities.cumsum(dim=-1) - probabilities  # the sum of the more probable ones
        probabilities = probabilities.masked_fill(before >= top_p, 0)
    return candidates.gather(-1, (probabilities / noise).argmax(dim=-1, keepdim=True))


@torch.no_grad()
def decode(decoder: Decoder, ids: torch.Tensor, seed: int = 0, step=None) -> Iterator[torch.Tensor]:
    """Yield the next ids (B, 1) after the prompt ids (B, T) int64, endlessly.

    decoder reads the prompt; step, e.g. a compiled decoder, then reads one token at a time. When
    the cache is full, decoding continues from its last S / 2 tokens. Their positions change, so
    they are read again: a text always begins at position 0, as in training.
    """
    k = min(decoder.top_k or VOCAB_SIZE, decoder.model.lm_head.weight.size(0), VOCAB_SIZE)
    noise = torch.empty(ids.size(0), k, device=ids.device)
    generator = torch.Generator(ids.device).manual_seed(seed)
    ids, n_read = ids[:, -decoder.S :], 0
    while True:
        if ids.size(1) > decoder.S:
            ids, n_read = ids[:, -max(1, decoder.S // 2) :], 0
        positions = torch.arange(n_read, ids.size(1), device=ids.device)
        n_read = ids.size(1)
        if decoder.temperature > 0:
            noise.exponential_(generator=generator)
        work = decoder if step is None or len(positions) > 1 else step
        # A CUDA graph writes its result to the same place each time: keep a copy.
        next_ids = work(ids[:, positions], positions, noise).clone()
        yield next_ids
        ids = torch.cat((ids, next_ids), dim=1)


def compiled_step(decoder: Decoder):
    """decoder as one compiled graph for one token, including sampling; on a GPU, a CUDA graph."""
    options = {
        # The compiler would recompute LayerNorm's output for each row of the matrix that reads it.
        # With this limit it stores whatever takes more than 2 operations.
        "realize_opcount_threshold": 2,
        "cpp.simdlen": 256,  # bits: 512-bit vectors convert 8- and 16-bit weights half as fast
        "triton.cudagraphs": next(decoder.parameters()).device.type == "cuda",
    }
    return compiled(decoder, **options)
