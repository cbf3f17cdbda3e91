import contextlib
import io
from types import SimpleNamespace

import torch

from common.ladder import Ladder, Rung

FILE = "common/model.py"


def answer(module) -> dict:
    def flops_per_token(n_layer, n_embd, vocab_size, T):
        return module.GPTConfig(n_layer, 12, n_embd, 1024, vocab_size).flops_per_token(T)

    return {"flops_per_token": flops_per_token, "mfu": mfu_of_rung}


def mfu_of_rung(tokens, ms, flops_per_token, peak):
    """As the ladder of stage 5 computes it."""
    config = SimpleNamespace(flops_per_token=lambda T: flops_per_token)
    with contextlib.redirect_stdout(io.StringIO()):
        rungs = Ladder(config, 1, tokens, torch.device("cpu"))
    rungs.peak = lambda dtype: peak
    rung = Rung("", ms=[ms] * 3, loss=0.0, val_loss=0.0)
    rungs.check(rung, rung)
    return rung.mfu


def mfu_by(formula) -> dict:
    """The right FLOPs, and an MFU by another formula."""
    return {"flops_per_token": lambda *sizes: 854_438_400 + sizes[3] - 1024, "mfu": formula}


WRONG = {
    "are not counted": [(" + 12 * self.n_layer * self.n_embd * T", "")],
    "for one layer": [("+ 12 * self.n_layer * self.n_embd * T", "+ 12 * self.n_embd * T")],
    "the head is not counted": [(" + self.n_embd * self.vocab_size", "")],
    "the look-ups of tokens": [("self.n_embd * self.vocab", "2 * self.n_embd * self.vocab")],
    "the positions are counted": [("self.n_embd * self.vocab_size",
                                   "self.n_embd * (self.vocab_size + self.block_size)")],
    "the forward pass alone": [("return 6 * matrices + 12", "return 2 * matrices + 4")],
    "the backward pass alone": [("return 6 * matrices + 12", "return 4 * matrices + 8")],
    "are 2 FLOPs": [("return 6 * matrices + 12", "return 3 * matrices + 6")],
    "the MLP is 8 C²": [("self.n_layer * 12 *", "self.n_layer * 4 *")],
    "do not depend on T": [("self.n_embd * T", "self.n_embd * self.block_size")],
    "ms are milliseconds": mfu_by(lambda tokens, ms, flops, peak: tokens * flops / ms / peak),
    "per cent": mfu_by(lambda tokens, ms, flops, peak: tokens * flops / ms * 1e5 / peak),
    "upside down": mfu_by(lambda tokens, ms, flops, peak: peak / (tokens * flops / ms * 1e3)),
    "of one step": mfu_by(lambda tokens, ms, flops, peak: tokens * flops / peak),
}  # fmt: skip
