"""Four ways to the same numbers, sooner: attention, vocabulary, precision, compilation.

What a machine may lack is asked first: `why_not_…` gives None, or the reason.
"""

import contextlib
from dataclasses import replace

import torch
import torch.nn as nn
from torch.nn import functional as F

from common.model import GPT


def flash_attention(q, k, v, dropout_p=0.0):
    """`causal_attention` as one kernel, which never holds the (T, T) scores as a whole
    (FlashAttention, Dao et al., 2022). q, k, v: (B, nh, T, hs)."""
    return F.scaled_dot_product_attention(q, k, v, is_causal=True, dropout_p=dropout_p)


def pad_vocab(model: GPT, multiple: int = 128) -> GPT:
    """Widen wte and lm_head to a multiple of `multiple` ids: 50257 → 50304.

    Kernels work in tiles, and 50257 is a multiple of none of them. The new ids never occur in a
    text. Their rows are the mean of the others, so their logits are the mean logit: exp being
    convex, the loss rises by ln(1 + 47 / 50257) < 0.001 at most, whatever the weights; training
    drives it down. A multiple of 1 changes nothing. Tied weights stay tied.
    """
    vocab_size = -(-model.config.vocab_size // multiple) * multiple
    missing = vocab_size - model.config.vocab_size
    wte, lm_head = model.transformer.wte, model.lm_head
    tied = wte.weight is lm_head.weight
    for part in (wte, lm_head) if missing else ():
        weight = part.weight.detach()
        part.weight = nn.Parameter(torch.cat((weight, weight.mean(0).expand(missing, -1))))
    if tied:
        lm_head.weight = wte.weight
    wte.num_embeddings = lm_head.out_features = vocab_size
    model.config = replace(model.config, vocab_size=vocab_size)
    return model


def why_not_tf32(device: torch.device) -> str | None:
    """TF32 is fp32 with 10 bits of mantissa in the products: NVIDIA's Ampere and later have it."""
    if device.type != "cuda":
        return f"TF32 is a mode of NVIDIA GPUs, not of {device.type}"
    if torch.cuda.get_device_capability(device) < (8, 0):
        return "this GPU is older than Ampere"
    return None


def autocast_dtype(device: torch.device) -> torch.dtype | None:
    """The 16-bit type that this device computes natively: bf16, which has fp32's range, else fp16,
    which needs a gradient scaler, else None."""
    if device.type == "cuda":
        ampere = torch.cuda.get_device_capability(device) >= (8, 0)
        return torch.bfloat16 if ampere else torch.float16
    if device.type == "mps":
        return torch.bfloat16 if torch.backends.mps.is_macos_or_newer(14, 0) else torch.float16
    features = torch.cpu.get_capabilities()
    native = ("amx_bf16", "avx512_bf16", "bf16")  # the last is ARM's name for it
    return torch.bfloat16 if any(features.get(name) for name in native) else None


def autocast(device: torch.device, dtype: torch.dtype | None):
    """Matrix products in dtype, weights in fp32. What of the rest stays fp32 is for the device to
    say: softmax and sums do on a GPU, not on a CPU. None: all is fp32."""
    if dtype is None:
        return contextlib.nullcontext()
    return torch.autocast(device.type, dtype)


def why_not_compile(device: torch.device) -> str | None:
    """Whether torch.compile works here, by compiling one sum: it needs a C++ compiler on a CPU,
    Triton on a GPU."""
    try:
        torch.compile(lambda x: x + 1)(torch.ones(2, device=device))
    except (RuntimeError, OSError) as error:  # RuntimeError: torch's own kinds are of it
        return f"{type(error).__name__}: {error}".strip().split("\n")[0]
    return None


class Loss(nn.Module):
    """A model's loss alone: the logits need not leave a compiled step."""

    def __init__(self, model: GPT):
        super().__init__()
        self.model = model

    def forward(self, x, y):
        return self.model(x, y)[1]


def compiled(work):
    """torch.compile of a module or function. On a CPU it is told to make tanh of one exp, as
    2·sigmoid(2x) − 1: GELU is mostly tanh, and a bf16 step takes 2 % less time for it."""
    return torch.compile(work, options={"cpp.use_decompose_tanh": True})
