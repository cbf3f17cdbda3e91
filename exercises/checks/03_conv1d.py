"""A state dict of one layer, C = 4, in which each tensor is random."""

import torch

from exercises.marking import Wrong

C, V, T = 4, 11, 6
BLOCK = {
    "ln_1.weight": (C,), "ln_1.bias": (C,), "ln_2.weight": (C,), "ln_2.bias": (C,),
    "attn.c_attn.weight": (C, 3 * C), "attn.c_attn.bias": (3 * C,),
    "attn.c_proj.weight": (C, C), "attn.c_proj.bias": (C,),
    "mlp.c_fc.weight": (C, 4 * C), "mlp.c_fc.bias": (4 * C,),
    "mlp.c_proj.weight": (4 * C, C), "mlp.c_proj.bias": (C,),
}  # fmt: skip
REST = {"wte.weight": (V, C), "wpe.weight": (T, C), "ln_f.weight": (C,), "ln_f.bias": (C,)}


def check(answer) -> None:
    shapes = {f"transformer.h.{i}.{name}": shape for i in (0, 1) for name, shape in BLOCK.items()}
    shapes |= {f"transformer.{name}": shape for name, shape in REST.items()}
    shapes["lm_head.weight"] = (V, C)
    state = {name: torch.randn(shape) for name, shape in shapes.items()}
    out = answer.from_hugging_face({name: tensor.clone() for name, tensor in state.items()})
    if out is None or out.keys() != state.keys():
        names = ", ".join(sorted(set(out or ()) ^ state.keys())[:2])
        raise Wrong(f"the names are to stay as they are; these differ: {names}")
    for name, tensor in state.items():
        check_one(name, tensor, out[name])


def check_one(name, before, after) -> None:
    conv1d = ".c_" in name and before.dim() == 2
    if torch.equal(after, before.t() if conv1d else before):
        return
    shape = tuple(before.shape)
    if conv1d and torch.equal(after, before):
        square = ": (C, C) fits either way, but its values do not" if shape == (C, C) else ""
        raise Wrong(f"{name} {shape} is not transposed{square}")
    if conv1d and torch.equal(after.flatten(), before.flatten()):
        raise Wrong(f"{name} has another shape, but its numbers in the same order: view and "
                    "reshape do not transpose")  # fmt: skip
    if torch.equal(after, before.t()):
        raise Wrong(f"{name} {shape} is transposed, but it is no Conv1D: go by the names")
    raise Wrong(f"{name} has other values than before")
