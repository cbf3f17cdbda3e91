"""GPT-2 (Radford et al., 2019, and OpenAI's code): LayerNorm before each part (pre-norm), learned
positions, GELU by its tanh formula, Hugging Face's names. Complete as it stands: later stages add
from outside, through GPTConfig or by calls on a model.

Shapes: B rows, T tokens, C = n_embd, nh heads of hs = C / nh."""

import math
import re
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
import torch.nn as nn
from torch.nn import functional as F


def causal_attention(q, k, v, dropout_p=0.0):
    """softmax(q kᵀ / √hs) v, each position seeing itself and its past. q, k, v: (B, nh, T, hs)."""
    T = q.size(-2)
    scores = q @ k.transpose(-2, -1) / math.sqrt(q.size(-1))  # (B, nh, T, T)
    future = torch.ones(T, T, dtype=torch.bool, device=q.device).triu(1)
    weights = F.softmax(scores.masked_fill(future, float("-inf")), dim=-1)
    return F.dropout(weights, dropout_p) @ v  # (B, nh, T, hs)


class ConfigError(ValueError):
    """A name or sizes that do not fit. The message is one line: the numbers, what to change."""


@dataclass(frozen=True)
class GPTConfig:
    n_layer: int = 12
    n_head: int = 12
    n_embd: int = 768  # C, the width
    block_size: int = 1024  # the longest sequence
    vocab_size: int = 50257  # 256 bytes, 50,000 merges, <|endoftext|>
    dropout: float = 0.0
    attention: Callable = causal_attention

    def __post_init__(self):
        for name in ("n_layer", "n_head", "n_embd", "block_size", "vocab_size"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} is {getattr(self, name)}: give 1 or more")
        if self.n_embd % self.n_head:
            hint = "give an n_embd that is a multiple of n_head"
            raise ConfigError(f"{self.n_head} heads do not divide a width of {self.n_embd}: {hint}")

    def flops_per_token(self, T: int) -> int:
        """Forward and backward: 6 for each weight of a matrix, 12·C·T a layer for attention over
        all T positions (PaLM, Chowdhery et al., 2022, appendix B). A multiply-add counts as 2."""
        matrices = self.n_layer * 12 * self.n_embd**2 + self.n_embd * self.vocab_size
        return 6 * matrices + 12 * self.n_layer * self.n_embd * T


# Parameters with the head tied to the token embedding. GPT-3's shapes are the paper's table 2.1,
# where two rows do not add up: 1.3B has 16 heads of 128 (not 24), 13B is 5120 wide (not 5140).
PRESETS = {
    "gpt-nano": GPTConfig(3, 3, 48),  # 2,546,400
    "gpt-micro": GPTConfig(4, 4, 128),  # 7,357,312
    "gpt-mini": GPTConfig(6, 6, 192),  # 12,515,520
    "gpt2": GPTConfig(12, 12, 768),  # 124,439,808
    "gpt2-medium": GPTConfig(24, 16, 1024),  # 354,823,168
    "gpt2-large": GPTConfig(36, 20, 1280),  # 774,030,080
    "gpt2-xl": GPTConfig(48, 25, 1600),  # 1,557,611,200
    "gpt3-125m": GPTConfig(12, 12, 768, 2048),  # 125,226,240
    "gpt3-350m": GPTConfig(24, 16, 1024, 2048),  # 355,871,744
    "gpt3-760m": GPTConfig(24, 16, 1536, 2048),  # 760,300,032
    "gpt3-1.3b": GPTConfig(24, 16, 2048, 2048),  # 1,315,723,264
    "gpt3-2.7b": GPTConfig(32, 32, 2560, 2048),  # 2,651,553,280
    "gpt3-6.7b": GPTConfig(32, 32, 4096, 2048),  # 6,658,404,352
    "gpt3-13b": GPTConfig(40, 40, 5120, 2048),  # 12,853,386,240
}


def preset(name: str, T: int = 1, **changes) -> GPTConfig:
    """PRESETS[name] with some fields changed; or a model of one's own, as 4x2x128: layers, heads,
    width. Raises ConfigError for another name, and for rows of T tokens where it reads fewer."""
    own = re.fullmatch(r"(\d+)x(\d+)x(\d+)", name)
    if not own and name not in PRESETS:
        names = ", ".join(PRESETS)
        raise ConfigError(f"no preset is called '{name}': take one of {names}, or as 4x2x128")
    config = replace(GPTConfig(*map(int, own.groups())) if own else PRESETS[name], **changes)
    if T > config.block_size:
        hint = "give a smaller --block-size, or another --model"
        raise ConfigError(f"{name} reads {config.block_size} tokens, not {T}: {hint}")
    return config


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
        x = x + self.attn(self.ln_1(x))  # tokens exchange information
        return x + self.mlp(self.ln_2(x))  # each token digests it


class GPT(nn.Module):
    def __init__(self, config: GPTConfig):
        super().__init__()
        self.config = config
        parts = {
            "wte": nn.Embedding(config.vocab_size, config.n_embd),
            "wpe": nn.Embedding(config.block_size, config.n_embd),
            "h": nn.ModuleList(Block(config) for _ in range(config.n_layer)),
            "ln_f": nn.LayerNorm(config.n_embd),
        }
        self.transformer = nn.ModuleDict(parts)
        self.lm_head = nn.Linear(config.n_embd, config.vocab_size, bias=False)

    def forward(self, idx, targets=None):
        """Logits (B, T, vocab_size) for ids (B, T) int64, and with targets (B, T) their mean
        cross-entropy in nats, else None. Raises ConfigError for ids that do not fit the model."""
        self._check(idx)
        t = self.transformer
        x = t.wte(idx) + t.wpe.weight[: idx.size(1)]  # (B, T, C)
        x = F.dropout(x, self.config.dropout, self.training)
        for block in t.h:
            x = block(x)
        logits = self.lm_head(t.ln_f(x))
        if targets is None:
            return logits, None
        return logits, F.cross_entropy(logits.view(-1, logits.size(-1)), targets.reshape(-1))

    def _check(self, idx):
        T, limit, vocab = idx.size(1), self.config.block_size, self.config.vocab_size
        if not 0 < T <= limit:
            hint = "shorten the sequence, or build the model with a larger block_size"
            raise ConfigError(f"{T} tokens do not fit a block size of {limit}: {hint}")
        if idx.is_cpu and not torch.compiler.is_compiling():  # elsewhere a look would cost a wait
            low, high = idx.min(), idx.max()
            if low < 0 or high >= vocab:
                hint = "check that text and model have the same tokenizer"
                raise ConfigError(f"ids {low} to {high} exceed a vocabulary of {vocab}: {hint}")
