"""A GPT without a forward, of 3 layers: the standard deviation of each weight, by name."""

from types import SimpleNamespace

import torch
from torch import nn

from exercises.marking import Wrong

C, V, N_LAYER = 64, 500, 3
TOLERANCE = 0.08  # of a standard deviation; 4,096 weights have it within 0.03
RESIDUAL = 0.02 / (2 * N_LAYER) ** 0.5


def skeleton() -> nn.Module:
    def block():
        attn = nn.ModuleDict({"c_attn": nn.Linear(C, 3 * C), "c_proj": nn.Linear(C, C)})
        mlp = nn.ModuleDict({"c_fc": nn.Linear(C, 4 * C), "c_proj": nn.Linear(4 * C, C)})
        norms = nn.LayerNorm(C), nn.LayerNorm(C)
        return nn.ModuleDict({"ln_1": norms[0], "attn": attn, "ln_2": norms[1], "mlp": mlp})

    model = nn.Module()
    model.config = SimpleNamespace(n_layer=N_LAYER, n_embd=C, vocab_size=V)
    blocks = nn.ModuleList(block() for _ in range(N_LAYER))
    parts = {"wte": nn.Embedding(V, C), "wpe": nn.Embedding(128, C), "h": blocks}
    model.transformer = nn.ModuleDict(parts | {"ln_f": nn.LayerNorm(C)})
    model.lm_head = nn.Linear(C, V, bias=False)
    for parameter in model.parameters():
        if parameter.dim() == 1:
            parameter.data.normal_(0.5)  # so that those left alone are noticed
    return model


def drawn(answer, seed: int) -> tuple[nn.Module, dict]:
    """A model, and the weights that it had before."""
    model = skeleton()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    answer.tie_and_init(model, seed)
    return model, before


def check(answer) -> None:
    model, before = drawn(answer, 1)
    if model.lm_head.weight is not model.transformer.wte.weight:
        if torch.equal(model.lm_head.weight, model.transformer.wte.weight):
            raise Wrong("lm_head has a copy of wte, which training would take elsewhere: assign "
                        "the Parameter itself")  # fmt: skip
        raise Wrong("lm_head and wte are two matrices: tie them")
    for name, tensor in model.named_parameters():
        if name.endswith("bias") or ".ln_" in name:
            check_constant(name, tensor)
        else:
            check_std(name, tensor, torch.equal(tensor, before[name]))
    first, second = (block.mlp.c_fc.weight for block in model.transformer.h[:2])
    if torch.equal(first, second):
        raise Wrong("two blocks have the same weights: make one generator, and draw all from it")
    models = model, drawn(answer, 1)[0], drawn(answer, 2)[0]
    wte, again, other = (m.transformer.wte.weight for m in models)
    if not torch.equal(again, wte):
        raise Wrong("the same seed gives other weights: draw from a generator of this seed")
    if torch.equal(other, wte):
        raise Wrong("seeds 1 and 2 give the same weights: seed the generator with seed")


def check_constant(name, tensor) -> None:
    value = 0.0 if name.endswith("bias") else 1.0
    if not (tensor == value).all():
        raise Wrong(f"{name} is to be {value:.0f} everywhere, and {tensor[0]:.3f} is in it")


def check_std(name, tensor, untouched: bool) -> None:
    right = RESIDUAL if "c_proj" in name else 0.01 if "wpe" in name else 0.02
    found = tensor.std().item()
    if abs(found / right - 1) < TOLERANCE:
        if abs(tensor.mean().item()) > right / 2:
            raise Wrong(f"{name} has a mean of {tensor.mean():.4f}, not 0")
        return
    why = ""
    if untouched:
        why = ": it is as PyTorch drew it"
    elif "c_proj" in name and abs(found / 0.02 - 1) < TOLERANCE:
        why = ": it writes into the residual stream, divide by √(2 n_layer)"
    elif "c_proj" in name and abs(found * N_LAYER**0.5 / 0.02 - 1) < TOLERANCE:
        why = ": a block adds to the stream twice, so divide by √(2 n_layer), not √n_layer"
    elif abs(found / right**0.5 - 1) < TOLERANCE:
        why = ": that is the square root, and 0.02 is a standard deviation, not a variance"
    raise Wrong(f"{name} has a standard deviation of {found:.4f}, not {right:.4f}{why}")
