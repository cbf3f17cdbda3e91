"""Exercise 3, stage 1: Hugging Face's weights into nn.Linear.

OpenAI wrote the linear layers of GPT-2 as a Conv1D, x W + b, with W of shape (in, out). PyTorch's
nn.Linear computes x Wᵀ + b, with W of shape (out, in). The names of the weights are the same, so

    W of nn.Linear = (W of Conv1D)ᵀ

for the four matrices of a block: attn.c_attn, attn.c_proj, mlp.c_fc and mlp.c_proj. Embeddings,
LayerNorms, biases and the head stay as they are. One of the four is square: if you forget to
transpose it, no error is raised, but the model is wrong.
(Radford et al., 2019; conv1d in OpenAI's gpt-2/src/model.py.)
"""

import torch


def from_hugging_face(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """state: the state dict of transformers' GPT2LMHeadModel, with names such as
    transformer.h.0.attn.c_attn.weight, (C, 3C). Returns a state dict for nn.Linear layers, with the
    same names: transformer.h.0.attn.c_attn.weight is now (3C, C)."""
    raise NotImplementedError


# region Hint. Fold this away; open it when you are stuck.
#
# Decide by the name, never by the shape: attn.c_proj.weight is (C, C) both ways, and wte, a matrix
# too, must stay. str.endswith takes a tuple of endings. .t() transposes; .view and .reshape to
# (out, in) would keep the order in memory, so the numbers would end up in the wrong places.
# endregion
