from types import SimpleNamespace

import torch

FILE = "common/generate.py"


class Predicts:
    """A model that predicts the same logits (B, vocab) whatever it reads."""

    training, config = False, SimpleNamespace(block_size=1)

    def __init__(self, logits):
        self.logits = logits

    def __call__(self, ids):
        return self.logits[:, None], None

    def eval(self):
        pass

    def train(self, mode):
        pass


def answer(module) -> dict:
    def next_ids(logits, temperature, top_k, seed):
        ids = torch.zeros(len(logits), 1, dtype=torch.long)
        return module.generate(Predicts(logits), ids, 1, temperature, top_k, seed)[:, 1:]

    return {"next_ids": next_ids}


WRONG = {
    "places among the candidates": [("candidates.gather(-1, choice)", "choice")],
    "only the most probable token": [("temperature == 0", "True")],
    "is divided by": [("temperature == 0", "False")],
    "5 tokens are drawn": [("min(top_k or VOCAB_SIZE, logits.size(-1))", "logits.size(-1)")],
    "4 tokens are drawn": [("min(top_k or VOCAB_SIZE,", "min(top_k + 1,")],
    "are multiplied": [("logits / temperature", "logits * temperature")],
    "come as at temperature 1": [("logits / temperature", "logits")],
    "the token is not the most probable": [("logits.argmax", "logits.argmin")],
    "all come equally often": [("temperature, dim=-1", "temperature, dim=0")],
    "not drawn from its own logits": [
        ("candidates.gather", "candidates[:1].expand_as(candidates).gather")],
    "the same seed gives other ids": [(", generator=generator", "")],
    "seeds 1 and 2 give the same": [("manual_seed(seed)", "manual_seed(0)")],
    "not (64, 1) int64": [("keepdim=True)", "keepdim=True).float()")],
}  # fmt: skip
