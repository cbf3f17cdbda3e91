"""Answers, for the tests of the exercises alone. A reader of the course need not open this.

The right answer is the project's own code, by a thin adapter. A known wrong answer is the same code
with some text replaced; its check must find it out, in a line that holds the given words.
"""

import math
import types
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

ROOT = Path(__file__).parent.parent


@dataclass(frozen=True)
class Solution:
    file: str  # of the project
    adapter: Callable  # the file as a module → what the exercise asks for, by name
    wrong: dict[str, list | dict]  # words of the line → [(old, new), …], or an answer by names

    def right(self) -> types.SimpleNamespace:
        return self.changed()

    def wrong_answer(self, words: str) -> types.SimpleNamespace:
        wrong = self.wrong[words]
        return types.SimpleNamespace(**wrong) if isinstance(wrong, dict) else self.changed(*wrong)

    def changed(self, *replacements: tuple[str, str]) -> types.SimpleNamespace:
        text = (ROOT / self.file).read_text()
        for old, new in replacements:
            assert old in text, f"solutions.py: {self.file} has no {old!r} any more"
            text = text.replace(old, new)
        module = types.ModuleType(self.file)
        exec(compile(text, self.file, "exec"), module.__dict__)
        return types.SimpleNamespace(**self.adapter(module))


def block_and_mlp(module) -> dict:
    def block(x, ln_1, attn, ln_2, mlp):
        parts = types.SimpleNamespace(ln_1=ln_1, attn=attn, ln_2=ln_2, mlp=mlp)
        return module.Block.forward(parts, x)

    def mlp(x, c_fc, c_proj):
        parts = types.SimpleNamespace(c_fc=c_fc, c_proj=c_proj, dropout=0.0, training=False)
        return module.MLP.forward(parts, x)

    return {"block": block, "mlp": mlp}


class Predicts:
    """A model that predicts the same logits (B, vocab) whatever it reads."""

    training, config = False, types.SimpleNamespace(block_size=1)

    def __init__(self, logits):
        self.logits = logits

    def __call__(self, ids):
        return self.logits[:, None], None

    def eval(self):
        pass

    def train(self, mode):
        pass


def next_ids(module) -> dict:
    def next_ids(logits, temperature, top_k, seed):
        ids = torch.zeros(len(logits), 1, dtype=torch.long)
        return module.generate(Predicts(logits), ids, 1, temperature, top_k, seed)[:, 1:]

    return {"next_ids": next_ids}


def bits_per_byte(module) -> dict:
    def bits_per_byte(windows, text):
        tokens = sum(n for _, n in windows)
        loss = sum(mean * n for mean, n in windows) / tokens
        return module.Evaluation(loss, tokens, len(text.encode())).bits_per_byte

    return {"bits_per_byte": bits_per_byte}


def bits_of(weigh, size) -> dict:
    """bits_per_byte by another sum of (mean, n) and another size of the text."""
    return {"bits_per_byte": lambda w, text: weigh(w) / math.log(2) / size(text)}


def sum_of_all(windows):
    return sum(mean * n for mean, n in windows)


def mean_of_means(windows):
    return sum(mean for mean, _ in windows) / len(windows) * sum(n for _, n in windows)


def n_bytes(text):
    return len(text.encode())


SOLUTIONS = {
    "01_causal_attention": Solution("common/model.py", vars, {
        "position 0 attends to position 1": [(".triu(1)", ".triu(2)")],
        "position 0 attends to position 5": [(".triu(1)", ".triu(9)")],
        "position 0 has nan": [(".triu(1)", ".triu(0)")],
        "position 2 does not attend to position 0": [
            (".triu(1)", ".triu(1) | torch.ones(T, T, dtype=torch.bool).tril(-2)")],
        "take the last": [("dim=-1)\n    return F.dropout", "dim=-2)\n    return F.dropout")],
        "mask before the softmax": [
            ("F.softmax(scores.masked_fill(future, float(\"-inf\")), dim=-1)",
             "F.softmax(scores, dim=-1).masked_fill(future, 0)")],
        "times too large: divide": [(" / math.sqrt(q.size(-1))", "")],
        "not by hs": [("/ math.sqrt(q.size(-1))", "/ q.size(-1)")],
        "exchanged": [("q @ k.transpose(-2, -1)", "k @ q.transpose(-2, -1)")],
        "work on the last two": [
            ("scores.masked_fill", "scores.mean(1, keepdim=True).masked_fill")],
    }),
    "02_block": Solution("common/model.py", block_and_mlp, {
        "GPT-2 normalizes before attention": [
            ("x + self.attn(self.ln_1(x))", "self.ln_1(x + self.attn(x))")],
        "GPT-2 normalizes before the MLP": [("self.mlp(self.ln_2(x))", "self.ln_2(self.mlp(x))")],
        "mlp gets attn + x, not ln_2": [
            ("self.mlp(self.ln_2(x))", "self.mlp(x) + 0 * self.ln_2(x)")],
        "the first residual connection": [
            ("x + self.attn(self.ln_1(x))", "self.attn(self.ln_1(x))")],
        "must read what attention has added": [
            ("x = x + self.attn(self.ln_1(x))", "y = self.attn(self.ln_1(x))"),
            ("return x + self.mlp", "return x + y + self.mlp")],
        "both residual": [
            ("x = x + self.attn(self.ln_1(x))", "y = x + self.attn(self.ln_1(x))"),
            ("return x + self.mlp(self.ln_2(x))", "return self.mlp(self.ln_2(y))")],
        "a residual connection": [
            ("x = x + self.attn(self.ln_1(x))",
             "a = self.attn(self.ln_1(x)); y = x + a"),
            ("return x + self.mlp(self.ln_2(x))", "return a + self.mlp(self.ln_2(y))")],
        "what attention added to x is lost": [
            ("x = x + self.attn(self.ln_1(x))", "y = x + self.attn(self.ln_1(x))"),
            ("self.mlp(self.ln_2(x))", "self.mlp(self.ln_2(y))")],
        "ln_1 is called 2 times": [("self.ln_2(x)", "self.ln_1(x)")],
        "there is no GELU": [('F.gelu(self.c_fc(x), approximate="tanh")', "self.c_fc(x)")],
        "ReLU": [('F.gelu(self.c_fc(x), approximate="tanh")', "F.relu(self.c_fc(x))")],
        "by erf": [(', approximate="tanh"', "")],
        "SiLU": [('F.gelu(self.c_fc(x), approximate="tanh")', "F.silu(self.c_fc(x))")],
        "put it between": [('self.c_proj(F.gelu(self.c_fc(x), approximate="tanh"))',
                            'F.gelu(self.c_proj(self.c_fc(x)), approximate="tanh")')],
        "adds its own x": [("x = self.c_proj(F.gelu", "x = x + self.c_proj(F.gelu")],
    }),
    "03_conv1d": Solution(
        "common/pretrained.py", lambda module: {"from_hugging_face": module._transposed}, {
        "c_attn.weight (4, 12) is not transposed": [("v.t().contiguous() if", "v if")],
        "attn.c_proj.weight (4, 4) is not transposed: (C, C)": [('"attn.c_proj.weight", ', "")],
        "view and reshape do not": [("v.t().contiguous()", "v.reshape(v.shape[::-1])")],
        "wte.weight (11, 4) is transposed": [("k.endswith(CONV1D)", "v.dim() == 2")],
        "lm_head.weight (11, 4) is transposed": [
            ("CONV1D = (", 'CONV1D = ("lm_head.weight", ')],
        "the names are to stay": [("{k: v.t()", '{k.removeprefix("transformer."): v.t()')],
    }),
    "04_top_k": Solution("common/generate.py", next_ids, {
        "places among the candidates": [("candidates.gather(-1, choice)", "choice")],
        "only the most probable token": [("temperature == 0", "True")],
        "is divided by": [("temperature == 0", "False")],
        "5 tokens are drawn": [("min(top_k or VOCAB_SIZE, logits.size(-1))", "logits.size(-1)")],
        "4 tokens are drawn": [("min(top_k or VOCAB_SIZE,", "min(top_k + 1,")],
        "are multiplied": [("logits / temperature", "logits * temperature")],
        "come as at temperature 1": [("logits / temperature", "logits")],
        "another than the most probable": [("logits.argmax", "logits.argmin")],
        "all come equally often": [("temperature, dim=-1", "temperature, dim=0")],
        "not drawn from its own logits": [
            ("candidates.gather", "candidates[:1].expand_as(candidates).gather")],
        "the same seed gives other ids": [(", generator=generator", "")],
        "seeds 1 and 2 give the same": [("manual_seed(seed)", "manual_seed(0)")],
        "not (64, 1) int64": [("keepdim=True)", "keepdim=True).float()")],
    }),
    "05_bits_per_byte": Solution("common/evals.py", bits_per_byte, {
        "the mean of the windows' means": bits_of(mean_of_means, n_bytes),
        "per window": bits_of(lambda windows: sum(mean for mean, _ in windows), n_bytes),
        "nats per byte": [(" / math.log(2)", "")],
        "multiplied by ln 2": [("/ math.log(2)", "* math.log(2)")],
        "bits per token": [("/ self.bytes", "/ self.tokens")],
        "bits per byte and token": [("self.loss * self.tokens /", "self.loss /")],
        "bits per character": bits_of(sum_of_all, len),
    }),
}  # fmt: skip
