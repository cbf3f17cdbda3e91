"""Exercise 11, stage 6: which weights decay.

Weight decay pulls a weight towards 0 in each step, by lr · weight_decay of itself. That regularizes
matrices, embeddings included. A bias only shifts, and a LayerNorm's weight, near 1, only scales:
pulling these towards 0 has no use. So there are two groups of parameters, each with its own weight
decay. A tied matrix is one parameter and must be in one group, once.
(Loshchilov and Hutter, 2019; the groups as in minGPT and nanoGPT; GPT-3 decays by 0.1.)
"""


def parameter_groups(model, weight_decay: float) -> list[dict]:
    """Groups for torch.optim.AdamW(groups, lr=…): dicts with "params", a list of all parameters of
    an nn.Module that decay alike, and "weight_decay"."""
    raise NotImplementedError


# region Hint. Fold this away; open it when you are stuck.
#
# No names are needed: p.dim() is 2 for what decays and 1 for what does not. A group without
# "weight_decay" gets AdamW's default, which is 0.01 and not 0. model.parameters() lists a shared
# parameter once.
# endregion
