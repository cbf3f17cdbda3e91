"""GPT-2 (Radford et al., 2019, and OpenAI's code): LayerNorm before attention and MLP (pre-norm),
learned positions, the tanh approximation of GELU, and Hugging Face's names for the weights.

B rows, T tokens, C = n_embd, nh = n_head heads of size hs = C / nh."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn as nn
from torch.nn import functional as F

from common.kit.cli import UserError


def causal_attention(q, k, v, dropout_p=0.0):
    """softmax(q kᵀ / √hs) v for q, k, v (B, nh, T, hs). Each position compares its query q with the
    keys k of itself and all positions before it. The softmax makes weights of these scores, and the
    result is the weighted mean of the values v. Each head does so on channels of its own."""
    T = q.size(-2)
    scores = q @ k.transpose(-2, -1) / math.sqrt(q.size(-1))  # (B, nh, T, T)
    future = torch.ones(T, T, dtype=torch.bool, device=q.device).triu(1)
    weights = F.softmax(scores.masked_fill(future, float("-inf")), dim=-1)
    return F.dropout(weights, dropout_p) @ v  # (B, nh, T, hs); dropout_p is 0 unless training


@dataclass(frozen=True)
class GPTConfig:
    n_layer: int = 12
    n_head: int = 12
    n_embd: int = 768  # C, the width
    block_size: int = 1024  # the longest sequence
    vocab_size: int = 50257  # 256 bytes, 50,000 merges, <|endoftext|>
    dropout: float = 0.0
    attention: Callable = causal_attention  # stage 5 swaps in a faster one

    def __post_init__(self):
        if self.n_embd % self.n_head:
            hint = "give a width that is a multiple of the heads"
            raise UserError(f"{self.n_head} heads do not divide a width of {self.n_embd}: {hint}")

    def flops_per_token(self, T: int) -> int:
        """For each weight of a matrix 2 FLOPs forward (a multiply-add) and 4 backward; a block has
        12·C² weights (3 + 1 in attention, 4 + 4 in the MLP). Attention's scores and means take
        12·C·T more per layer (PaLM, Chowdhery et al., 2022, appendix B)."""
        matrices = self.n_layer * 12 * self.n_embd**2 + self.n_embd * self.vocab_size
        return 6 * matrices + 12 * self.n_layer * self.n_embd * T


class CausalSelfAttention(nn.Module):
    def __init__(self, config: GPTConfig):
        super().__init__()
        self.n_head, self.dropout, self.attention = config.n_head, config.dropout, config.attention
        self.c_attn = nn.Linear(config.n_embd, 3 * config.n_embd)  # q, k and v in one product
        self.c_proj = nn.Linear(config.n_embd, config.n_embd)

    def forward(self, x):
        B, T, C = x.shape
        q, k, v = (
            part.view(B, T, self.n_head, C // self.n_head).transpose(1, 2)  # (B, nh, T, hs)
            for part in self.c_attn(x).split(C, dim=2)
        )
        y = self.attention(q, k, v, self.dropout if self.training else 0.0)
        y = self.c_proj(y.transpose(1, 2).reshape(B, T, C))  # heads side by side again
        return F.dropout(y, self.dropout, self.training)


class MLP(nn.Module):
    def __init__(self, config: GPTConfig):
        super().__init__()
        self.dropout = config.dropout
        self.c_fc = nn.Linear(config.n_embd, 4 * config.n_embd)
        self.c_proj = nn.Linear(4 * config.n_embd, config.n_embd)

    def forward(self, x):
        x = self.c_proj(F.gelu(self.c_fc(x), approximate="tanh"))
        return F.dropout(x, self.dropout, self.training)


class Block(nn.Module):
    def __init__(self, config: GPTConfig):
        super().__init__()
        self.ln_1 = nn.LayerNorm(config.n_embd)  # eps 1e-5
        self.attn = CausalSelfAttention(config)
        self.ln_2 = nn.LayerNorm(config.n_embd)
        self.mlp = MLP(config)

    def forward(self, x):
        # x is the residual stream, to which a block adds twice.
        x = x + self.attn(self.ln_1(x))  # tokens exchange information
        return x + self.mlp(self.ln_2(x))  # each token processes what it has gathered


class GPT(nn.Module):
    def __init__(self, config: GPTConfig):
        super().__init__()
        self.config = config
        parts = {
            "wte": nn.Embedding(config.vocab_size, config.n_embd),  # a vector for each token
            "wpe": nn.Embedding(config.block_size, config.n_embd),  # and for each position
            "h": nn.ModuleList(Block(config) for _ in range(config.n_layer)),
            "ln_f": nn.LayerNorm(config.n_embd),
        }
        self.transformer = nn.ModuleDict(parts)
        self.lm_head = nn.Linear(config.n_embd, config.vocab_size, bias=False)

    def forward(self, idx, targets=None):
        """Returns logits and loss for ids (B, T) int64. The logits (B, T, vocab_size) are scores
        before the softmax. The loss is the mean cross-entropy in nats (natural logarithms), or None
        without targets (B, T). Raises UserError if T exceeds the block size."""
        T, limit, vocab = idx.size(1), self.config.block_size, self.config.vocab_size
        if not 0 < T <= limit:
            raise UserError(f"{T} tokens do not fit a block size of {limit}: shorten the sequence")
        # Positions are 0 to T - 1 in every row: the first T rows of the table.
        x = self.transformer.wte(idx) + self.transformer.wpe.weight[:T]  # (B, T, C)
        x = F.dropout(x, self.config.dropout, self.training)
        for block in self.transformer.h:
            x = block(x)
        logits = self.lm_head(self.transformer.ln_f(x))
        if targets is None:
            return logits, None
        return logits, F.cross_entropy(logits.view(-1, vocab), targets.reshape(-1))
