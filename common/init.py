"""Weight tying (one matrix reads and predicts tokens) and GPT-2's initialization.

| tensor                     | drawn from                   | source                             |
|----------------------------|------------------------------|------------------------------------|
| wte (and lm_head, tied)    | normal(0, 0.02)              | OpenAI's gpt-2/src/model.py        |
| wpe                        | normal(0, 0.01)              | the same                           |
| linear weights             | normal(0, 0.02)              | the same                           |
| c_proj (2·n_layer add up)  | normal(0, 0.02/√(2·n_layer)) | GPT-2 paper, section 2.3           |
| biases; LayerNorm          | 0; weight 1, bias 0          | OpenAI's code                      |
"""

import torch
import torch.nn as nn

from common.model import GPT


def tie_weights(model: GPT) -> GPT:
    """Let lm_head share wte's matrix (Press & Wolf, 2017). Returns model."""
    model.lm_head.weight = model.transformer.wte.weight
    return model


@torch.no_grad()
def init_weights(model: GPT, seed: int) -> GPT:
    """Draw all weights as in the table above, on the CPU, so that a seed gives the same weights on
    every device. A tied matrix is drawn once, as wte. Returns model."""
    generator = torch.Generator().manual_seed(seed)
    residual = (2 * model.config.n_layer) ** -0.5  # each block adds to the stream twice

    def draw(parameter: nn.Parameter, std: float) -> None:
        parameter.copy_(torch.empty(parameter.shape).normal_(0, std, generator=generator))

    wte = model.transformer.wte.weight
    for name, part in model.named_modules():
        if isinstance(part, nn.Embedding):
            draw(part.weight, 0.01 if name.endswith("wpe") else 0.02)
        elif isinstance(part, nn.LayerNorm):
            part.weight.fill_(1)
            part.bias.zero_()
        elif isinstance(part, nn.Linear):
            if part.weight is not wte:
                draw(part.weight, 0.02 * (residual if name.endswith("c_proj") else 1))
            if part.bias is not None:
                part.bias.zero_()
    return model
