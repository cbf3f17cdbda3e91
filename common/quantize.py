"""Weights in 16 or 8 bits. A token takes only 2 operations per weight, so on a CPU most of its time
goes into reading the weights from memory: half the bits can double the speed.

Only the weights are small. For one row, activations and sums stay in fp32. Several rows (a prompt,
a batch) are multiplied in 16 bits where the device does that natively.
"""

import copy

import torch
import torch.nn as nn
from torch.nn import functional as F


class RowLinear(nn.Module):
    """nn.Linear with weights of another dtype, for one row x: (1, 1, in) → (1, 1, out).

    Each output is the sum of x times a row of weights. torch.compile makes this one loop, which
    converts the weights to fp32 in registers as it reads them. Eager mode would write the fp32
    weights to memory first. Several rows are a matrix product in `dense_dtype`.
    """

    def __init__(self, linear: nn.Linear, dtype: torch.dtype, dense_dtype: torch.dtype):
        super().__init__()
        self.dtype, self.dense_dtype, self.bias = dtype, dense_dtype, linear.bias
        self.register_buffer("weight", self.store(linear.weight.detach()))

    def store(self, weight: torch.Tensor) -> torch.Tensor:
        return weight.to(self.dtype)

    def dense(self) -> torch.Tensor:
        """The weights (out, in), in the dtype they are stored in."""
        return self.weight

    def sums(self, x: torch.Tensor) -> torch.Tensor:
        """The product with one x (in,): (out,)."""
        return (self.weight.float() * x).sum(-1)

    def forward(self, x):
        if x.numel() == x.size(-1):
            y = self.sums(x.view(-1)).view(1, 1, -1)
        else:
            y = F.linear(x.to(self.dense_dtype), self.dense().to(self.dense_dtype)).float()
        return y if self.bias is None else y + self.bias


class Int8Linear(RowLinear):
    """RowLinear with 8-bit weights: integers from -127 to 127, and a scale for each output.

    Four weights are packed into a 32-bit word, since compiled code on a CPU loads words faster than
    bytes. Word i holds the weights of inputs i, i + n, i + 2n and i + 3n, where n is a quarter of
    the inputs. A mask extracts a weight times 1, 2^8, 2^16 or 2^24; `sums` divides x by that
    factor. The three lower bytes are stored unsigned, as weight + 128, so `sums` subtracts 128
    times their x. The upper byte carries the word's sign bit.
    """

    def store(self, weight):
        self.n_in = weight.size(1)
        weight = F.pad(weight, (0, -weight.size(1) % 4))
        scale = weight.abs().amax(dim=1).clamp(min=1e-12) / 127  # (out,)
        self.register_buffer("scale", scale)
        a, b, c, d = (weight / scale[:, None]).round().int().chunk(4, dim=1)
        words = (a + 128) | (b + 128) << 8 | (c + 128) << 16 | d << 24
        return words.view(torch.float32)  # the same bits: floats load faster than integers

    def bytes(self) -> list[torch.Tensor]:
        """Four parts of the weights, float (out, in / 4), as stored: + 128, × 2^8 and so on."""
        words = self.weight.view(torch.int32)
        return [(words & mask).float() for mask in (0xFF, 0xFF00, 0xFF0000, -(1 << 24))]

    def dense(self):
        parts = [part / 2**shift for part, shift in zip(self.bytes(), (0, 8, 16, 24), strict=True)]
        whole = torch.cat([part - 128 for part in parts[:3]] + parts[3:], dim=1)
        return whole[:, : self.n_in] * self.scale[:, None]

    def sums(self, x):
        x = F.pad(x, (0, -x.numel() % 4)).view(4, -1)
        shifts = torch.tensor([1, 2**-8, 2**-16, 2**-24], device=x.device)
        a, b, c, d = (part * y for part, y in zip(self.bytes(), x * shifts[:, None], strict=True))
        return ((a + b + c + d).sum(-1) - 128 * x[:3].sum()) * self.scale


def quantized(model: nn.Module, bits: int, dtype: torch.dtype, dense_dtype: torch.dtype):
    """A copy of model whose nn.Linear have weights of 32, 16 or 8 bits: fp32, dtype, or integers.
    Embeddings stay as they are: a token reads only one row of each."""
    model = copy.deepcopy(model)
    kind, stored = Int8Linear if bits == 8 else RowLinear, torch.float32 if bits == 32 else dtype
    for module in list(model.modules()):
        for name, linear in module.named_children():
            if isinstance(linear, nn.Linear):
                setattr(module, name, kind(linear, stored, dense_dtype))
    return model


def bytes_per_token(model: nn.Module) -> int:
    """The weights that a new token reads, in bytes. Embeddings are left out: it reads one row."""
    return sum(
        t.nbytes
        for module in model.modules()
        if not isinstance(module, nn.Embedding)
        for t in (*module.parameters(recurse=False), *module.buffers(recurse=False))
    )
