"""Sizes by name: small models for a CPU, GPT-2's four, and GPT-3's (Brown et al., 2020, table 2.1),
with the number of parameters if the head is tied to the token embedding."""

import re

from common.kit.cli import UserError
from common.model import GPTConfig

PRESETS = {
    "gpt-nano": dict(n_layer=3, n_head=3, n_embd=48),  # 2,546,400
    "gpt-micro": dict(n_layer=4, n_head=4, n_embd=128),  # 7,357,312
    "gpt-mini": dict(n_layer=6, n_head=6, n_embd=192),  # 12,515,520
    "gpt2": dict(n_layer=12, n_head=12, n_embd=768),  # 124,439,808
    "gpt2-medium": dict(n_layer=24, n_head=16, n_embd=1024),  # 354,823,168
    "gpt2-large": dict(n_layer=36, n_head=20, n_embd=1280),  # 774,030,080
    "gpt2-xl": dict(n_layer=48, n_head=25, n_embd=1600),  # 1,557,611,200
    "gpt3-125m": dict(n_layer=12, n_head=12, n_embd=768, block_size=2048),  # 125,226,240
    "gpt3-350m": dict(n_layer=24, n_head=16, n_embd=1024, block_size=2048),  # 355,871,744
    "gpt3-760m": dict(n_layer=24, n_head=16, n_embd=1536, block_size=2048),  # 760,300,032
    # The paper's table has 24 heads for this one, which do not add up to its width, …
    "gpt3-1.3b": dict(n_layer=24, n_head=16, n_embd=2048, block_size=2048),  # 1,315,723,264
    "gpt3-2.7b": dict(n_layer=32, n_head=32, n_embd=2560, block_size=2048),  # 2,651,553,280
    "gpt3-6.7b": dict(n_layer=32, n_head=32, n_embd=4096, block_size=2048),  # 6,658,404,352
    # … and a width of 5140 for this one.
    "gpt3-13b": dict(n_layer=40, n_head=40, n_embd=5120, block_size=2048),  # 12,853,386,240
}


def preset(name: str, T: int = 1, **changes) -> GPTConfig:
    """The preset called name, with some fields changed. A name such as 4x2x128 is a model of 4
    layers, 2 heads and width 128. Raises UserError for an unknown name, and if rows of T tokens
    exceed the block size."""
    own = re.fullmatch(r"([1-9]\d*)x([1-9]\d*)x([1-9]\d*)", name)
    if own:
        sizes = dict(zip(("n_layer", "n_head", "n_embd"), map(int, own.groups()), strict=True))
    elif name in PRESETS:
        sizes = PRESETS[name]
    else:
        names = ", ".join(PRESETS)
        raise UserError(f"no preset is called '{name}': give one of {names}, or one like 4x2x128")
    config = GPTConfig(**sizes | changes)
    if T > config.block_size:
        hint = "give a smaller --block-size, or another --model"
        raise UserError(f"{name} has a block size of {config.block_size} tokens, not {T}: {hint}")
    return config
