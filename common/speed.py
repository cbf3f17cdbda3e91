"""Ways to get (nearly) the same loss in less time: TF32, 16 bits, attention, vocabulary,
compilation, a fused update, a narrow residual stream.

Not every machine gains from each of them: `why_not` says why not, or returns None.
"""

import contextlib
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
import torch.nn as nn
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from common.init import init_weights, tie_weights
from common.kit.cli import is_out_of_memory
from common.kit.device import quiet_compiler
from common.kit.measure import timed
from common.model import GPT, GPTConfig, causal_attention

# For scaled_dot_product_attention (SDPA): not cuDNN, whose plan for a new shape takes tens of ms.
FOR_ANY_SHAPE = [SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]


@dataclass(frozen=True)
class Setting:
    """How a model is computed. The defaults are stage 4's: the formulas, in fp32."""

    tf32: bool = False
    dtype: torch.dtype | None = None  # of autocast; None is fp32
    attention: Callable = causal_attention
    vocab_multiple: int = 1
    compile: bool = False
    fused: bool = False  # stage 5's AdamW; stage 6's always is
    residual: bool = False  # the residual stream in autocast's dtype

    def names(self) -> dict[str, str]:
        """As the values of a script's options dtype, attention and compile."""
        return {
            "dtype": str(self.dtype or torch.float32).removeprefix("torch."),
            "attention": "flash" if self.attention is flash_attention else "formula",
            "compile": "yes" if self.compile else "no",
        }


def build(config: GPTConfig, setting: Setting, seed: int) -> GPT:
    """Stage 4's model, tied and initialized, with the changes of the setting."""
    model = tie_weights(GPT(replace(config, attention=setting.attention)))
    return narrow_residual(pad_vocab(init_weights(model, seed), setting.vocab_multiple), setting)


def flash_attention(q, k, v, dropout_p=0.0):
    """`causal_attention` as one kernel that never stores all (T, T) scores (FlashAttention, Dao et
    al., 2022). q, k, v: (B, nh, T, hs)."""
    training = torch.is_grad_enabled()  # training batches all have one shape
    with contextlib.nullcontext() if training else sdpa_kernel(FOR_ANY_SHAPE):
        return F.scaled_dot_product_attention(q, k, v, is_causal=True, dropout_p=dropout_p)


def why_not_flash(config: GPTConfig, B: int, T: int, dtype, device: torch.device) -> str | None:
    """Time flash_attention and the formula, forward and backward, on one layer's q, k, v of a
    (B, T) batch. Returns the reason to stay with the formula, or None: some CPUs' kernel is slow
    for some shapes and dtypes."""
    shape = (B, config.n_head, T, config.n_embd // config.n_head)
    q, k, v = torch.randn(3, *shape, device=device, dtype=dtype or torch.float32).requires_grad_()

    def seconds(attention) -> float:
        return timed(lambda: attention(q, k, v).sum().backward(), device)[0]

    try:
        seconds(causal_attention)
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
        return None  # its scores do not fit in memory
    pairs = [(seconds(causal_attention), seconds(flash_attention)) for _ in range(10)]
    # The minima, since other work on the machine slows some repetitions.
    times = min(flash for _, flash in pairs) / min(formula for formula, _ in pairs)
    return f"it takes {times:.1f} times as long as the formula" if times > 1.1 else None


def pad_vocab(model: GPT, multiple: int = 128) -> GPT:
    """Pad wte and lm_head to a multiple of `multiple` ids: 50257 → 50304. Returns model.

    Kernels work in tiles, whose sizes do not divide 50257. The new ids never occur in a text. Their
    rows are the mean of the others, so their logit is the mean logit: since exp is convex, the loss
    rises by at most ln(1 + 47 / 50257) < 0.001, and training lowers it again. A multiple of 1
    changes nothing. Tied weights stay tied.
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


def narrow_residual(model: GPT, setting: Setting) -> GPT:
    """With setting.residual, cast the first block's input to autocast's dtype, which all later sums
    then keep. Otherwise the fp32 embeddings would make every sum fp32. Returns model."""

    def narrow(block, inputs):
        device, (x,) = inputs[0].device.type, inputs
        return x.to(torch.get_autocast_dtype(device)) if torch.is_autocast_enabled(device) else x

    if setting.residual:
        model.transformer.h[0].register_forward_pre_hook(narrow)
    return model


def autocast_dtype(device: torch.device) -> torch.dtype | None:
    """The 16-bit dtype that the device computes natively: bf16, which has fp32's range, else fp16,
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
    """Matrix products in dtype, weights in fp32; other operations follow the device's autocast
    policy. With None everything is fp32."""
    return torch.autocast(device.type, dtype, enabled=dtype is not None)


def why_not_compile(device: torch.device) -> str | None:
    """Why torch.compile does not work here, found by compiling a tiny model's step. It needs a C++
    compiler on a CPU, Triton on NVIDIA's GPUs; on Apple's it may lack an operation."""
    model = GPT(GPTConfig(1, 1, 16, 8, 16, attention=flash_attention)).to(device)
    ids = torch.zeros(1, 8, dtype=torch.long, device=device)
    try:
        loss_function(model, compile=True)(ids, ids).backward()
    except (RuntimeError, OSError) as error:  # torch's compile errors are RuntimeErrors
        return f"{type(error).__name__}: {error}".strip().split("\n")[0]
    finally:
        torch._dynamo.reset()  # or the next model's shapes would count as changed
    return None


def compiled(work, **options):
    """torch.compile for a module or a function. On a CPU it computes tanh as 2·sigmoid(2x) − 1,
    with a single exp: GELU spends most of its time on tanh, and a bf16 step takes 2 % less time."""
    quiet_compiler()
    return torch.compile(work, options={"cpp.use_decompose_tanh": True} | options)


def loss_function(model: nn.Module, compile: bool) -> Callable:
    """f(x, y), model's loss. It returns no logits, so the compiler may fuse them into the loss. The
    model itself stays eager, for evaluation, sampling and saving."""

    def loss_of(x, y):
        return model(x, y)[1]

    return compiled(loss_of) if compile else loss_of


def why_not(
    change: dict, setting: Setting, config: GPTConfig, B: int, T: int, device: torch.device
) -> str | None:
    """The reason to skip the change, for batches (B, T) on this device, or None."""
    if "tf32" in change and device.type != "cuda":
        return f"TF32 is a mode of NVIDIA GPUs, not of {device.type}"
    if "tf32" in change and torch.cuda.get_device_capability(device) < (8, 0):
        return "this GPU is older than Ampere"
    if "dtype" in change and change["dtype"] is None:
        return "this CPU has no AVX512-BF16, AMX or ARM bf16"
    if "attention" in change:
        return why_not_flash(config, B, T, setting.dtype, device)
    if "residual" in change and (device.type, setting.dtype) != ("cuda", torch.bfloat16):
        return "it is for bf16 on NVIDIA's GPUs"
    return why_not_compile(device) if "compile" in change else None


def setting_of(dtype: str, attention: str, compile: str, device: torch.device) -> Setting:
    """The Setting with these names, on a vocabulary padded to a multiple of 128."""
    function = {"formula": causal_attention, "flash": flash_attention}[attention]
    autocast_to = None if dtype == "float32" else getattr(torch, dtype)
    how = {"attention": function, "vocab_multiple": 128, "compile": compile == "yes"}
    residual = device.type == "cuda" and autocast_to is torch.bfloat16
    return Setting(dtype=autocast_to, residual=residual, **how)


def best_setting(
    config: GPTConfig, B: int, T: int, device, dtype="auto", attention="auto", compile="auto"
) -> Setting:
    """What stage 5 found: each "auto" becomes the fastest choice here for batches (B, T)."""
    if dtype == "auto":
        dtype = str(autocast_dtype(device) or torch.float32).removeprefix("torch.")
    if attention == "auto":
        autocast_to = setting_of(dtype, "formula", "no", device).dtype
        attention = "formula" if why_not_flash(config, B, T, autocast_to, device) else "flash"
    if compile == "auto":
        compile = "no" if why_not_compile(device) else "yes"
    return setting_of(dtype, attention, compile, device)
