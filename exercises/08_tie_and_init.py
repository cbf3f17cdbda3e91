"""Exercise 8, stage 4: weight tying, and the size of the initial weights.

The matrix that reads tokens (wte) and the one that predicts them (lm_head) have the same shape and
the same meaning, one vector per token: GPT-2 uses one matrix for both. That saves 38,597,376 of
stage 0's 163,037,184 parameters.

Each block adds to the residual stream twice, in its two layers called c_proj. 2 · n_layer additions
of equal size would make the stream's standard deviation √(2 n_layer) times as large, so these
layers start smaller:

    wte, linear weights   normal(0, 0.02)
    wpe                   normal(0, 0.01)
    c_proj                normal(0, 0.02 / √(2 n_layer))
    biases 0; LayerNorm weights 1

The second number of normal(…) is the standard deviation.
(Press and Wolf, 2017; Radford et al., 2019, section 2.3; OpenAI's gpt-2/src/model.py.)
"""

import torch


def tie_and_init(model: torch.nn.Module, seed: int) -> None:
    """Change model, a GPT of nn.Embedding, nn.Linear and nn.LayerNorm with Hugging Face's names
    (model.transformer.wte, model.lm_head, …) and model.config.n_layer, in place. The same seed
    gives the same weights."""
    raise NotImplementedError


# region Hint. Fold this away; open it when you are stuck.
#
# Tying is one assignment: model.lm_head.weight = model.transformer.wte.weight. A copy would be
# another Parameter, which training would change differently. Then walk over model.named_modules():
# isinstance tells the kind of layer, and name.endswith("c_proj") the ones that start smaller. Draw
# by part.weight.normal_(0, std, generator=generator) under torch.no_grad(), with one
# torch.Generator().manual_seed(seed). lm_head is an nn.Linear too: skip it, its matrix is already
# drawn.
# endregion
