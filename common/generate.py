"""Sampling: one token at a time, each drawn from the model's own prediction.

Each new token reads the whole window again. Keeping the keys and values of what was read (a "KV
cache") would save that; for some lines now and then it is not worth a second way through the model.
"""

import torch

from common.cli import UserError
from common.tokenizer import VOCAB_SIZE


def check_sampling(temperature: float, top_k: int | None, max_new_tokens: int) -> None:
    """Raises UserError for settings that no sample can be drawn with."""
    if not 0 <= temperature < float("inf"):
        raise UserError(f"--temperature is {temperature}: give 0 (greedy) or more")
    if top_k is not None and top_k < 1:
        raise UserError(f"--top-k is {top_k}: give 1 or more, the number of tokens to draw from")
    if max_new_tokens < 1:
        raise UserError(f"--max-new-tokens is {max_new_tokens}: give 1 or more")


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

    Temperature 0 is greedy; top_k draws from the k likeliest tokens alone (Fan et al., 2018). A
    seed makes the draws repeatable, whatever was drawn before. Ids that only pad the vocabulary
    are never drawn. Past the block size the model sees the last block_size tokens.
    Raises UserError for settings that make no sense.
    """
    check_sampling(temperature, top_k, max_new_tokens)
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
            logits = logits - logits[:, :1]  # the largest is 0: no temperature makes it infinite
            probabilities = torch.softmax(logits / temperature, dim=-1)
            choice = torch.multinomial(probabilities, 1, generator=generator)
            next_ids = candidates.gather(-1, choice)
        ids = torch.cat((ids, next_ids), dim=1)
    model.train(was_training)
    return ids
