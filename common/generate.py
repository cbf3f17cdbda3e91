"""Sampling: one token at a time, each drawn from the model's prediction.

This is the simple way: for each new token the model reads the whole text again. Stage 9 saves that
work with a KV cache, which keeps the keys and values of the tokens already read.
"""

import torch

from common.kit.cli import UserError
from common.tokenizer import VOCAB_SIZE


def check_prompt(n_tokens: int, block_size: int) -> None:
    """Raises UserError for a prompt that does not fit the model."""
    if n_tokens > block_size:
        found = f"{n_tokens} tokens long, the model's block size is {block_size}"
        raise UserError(f"the prompt is {found}: shorten the prompt")


@torch.no_grad()
def generate(
    model,
    ids: torch.Tensor,
    max_new_tokens: int,
    temperature: float = 1.0,
    top_k: int | None = None,
    seed: int | None = None,
) -> torch.Tensor:
    """Extend ids (B, T) int64 to (B, T + max_new_tokens), each row on its own.

    Temperature 0 always takes the most probable token (greedy). top_k samples from the k most
    probable ones (Fan et al., 2018). With a seed the sample is reproducible. The model sees only
    the last block_size tokens. Ids beyond GPT-2's (stage 5 pads the vocabulary) are never sampled.
    """
    generator = None if seed is None else torch.Generator(ids.device).manual_seed(seed)
    was_training = model.training
    model.eval()
    for _ in range(max_new_tokens):
        logits, _ = model(ids[:, -model.config.block_size :])
        logits = logits[:, -1, :VOCAB_SIZE].float()  # (B, vocab): what follows the last token
        if temperature == 0:
            next_ids = logits.argmax(dim=-1, keepdim=True)
        else:
            logits, candidates = logits.topk(min(top_k or VOCAB_SIZE, logits.size(-1)))  # (B, k)
            logits = logits - logits[:, :1]  # the maximum is 0: a tiny temperature gives no nan
            probabilities = torch.softmax(logits / temperature, dim=-1)
            choice = torch.multinomial(probabilities, 1, generator=generator)
            next_ids = candidates.gather(-1, choice)
        ids = torch.cat((ids, next_ids), dim=1)
    model.train(was_training)
    return ids
