"""The weight decay that AdamW ends up with for each parameter of a small tied model, by name."""

from collections import Counter

import torch
from torch import nn

from exercises.marking import Wrong

DECAY = 0.3


def check(answer) -> None:
    parts = {"wte": nn.Embedding(11, 4), "wpe": nn.Embedding(6, 4), "ln_1": nn.LayerNorm(4),
             "c_attn": nn.Linear(4, 12), "c_proj": nn.Linear(4, 4), "ln_f": nn.LayerNorm(4),
             "lm_head": nn.Linear(4, 11, bias=False)}  # fmt: skip
    model = nn.ModuleDict(parts)
    model["lm_head"].weight = model["wte"].weight
    groups = [dict(group) for group in answer.parameter_groups(model, DECAY)]
    for group in groups:
        group["params"] = list(group["params"])
    times = Counter(id(p) for group in groups for p in group["params"])
    for name, parameter in model.named_parameters():
        if times[id(parameter)] == 0:
            raise Wrong(f"{name} is in no group: it would never be trained")
        if times[id(parameter)] > 1:
            tied = ", which is lm_head.weight too," if name == "wte.weight" else ""
            raise Wrong(f"{name}{tied} is in the groups {times[id(parameter)]} times: it would be "
                        "updated as often")  # fmt: skip
    optimizer = torch.optim.AdamW(groups, lr=1.0)
    found = {id(p): g["weight_decay"] for g in optimizer.param_groups for p in g["params"]}
    for name, parameter in model.named_parameters():
        check_one(name, found[id(parameter)], DECAY if parameter.dim() == 2 else 0.0)


def check_one(name: str, found: float, right: float) -> None:
    if found == right:
        return
    if found == 0.01:
        raise Wrong(f"{name} decays by 0.01, AdamW's default: give its group a weight_decay")
    if right:
        raise Wrong(f"{name} decays by {found}, not by {right}: matrices and embeddings decay")
    what = "LayerNorms" if name.startswith("ln") else "biases"
    raise Wrong(f"{name} decays by {found}: {what} should not")
