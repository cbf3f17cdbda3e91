"""The parts give out random tensors and note what they are given, which is then told apart."""

from itertools import combinations

import torch
from torch.nn import functional as F

from exercises.marking import Wrong

READY_MADE = {"TransformerEncoderLayer", "TransformerDecoderLayer", "TransformerEncoder"}
RIGHT = {"ln_1": "x", "attn": "ln_1", "ln_2": "attn + x", "mlp": "ln_2", "block": "attn + mlp + x"}
WHY = {
    ("ln_1", "attn + x"): "that is post-norm, and GPT-2 normalizes before attention (pre-norm)",
    ("ln_2", "mlp"): "GPT-2 normalizes before the MLP (pre-norm)",
    ("attn", "x"): "GPT-2 normalizes before attention (pre-norm)",
    ("mlp", "attn + x"): "GPT-2 normalizes before the MLP (pre-norm)",
    ("ln_2", "attn"): "the first residual connection, x + …, is missing",
    ("ln_2", "x"): "the MLP must read what attention has added to x",
    ("block", "mlp"): "both residual connections are missing",
    ("block", "attn + mlp"): "a residual connection is missing",
    ("block", "mlp + x"): "what attention added to x is lost",
}


def check(answer) -> None:
    check_order(answer.block)
    check_mlp(answer.mlp)


def check_order(block) -> None:
    tensors = {name: torch.randn(1, 3, 4) for name in ("attn", "ln_1", "ln_2", "mlp", "x")}
    given = {}

    def part(name):
        def give(x):
            given.setdefault(name, []).append(x.clone())
            return tensors[name].clone()

        return give

    parts = {name: part(name) for name in ("ln_1", "attn", "ln_2", "mlp")}
    x = tensors["x"].clone()
    given["block"] = [block(x, **parts)]
    if not torch.equal(x, tensors["x"]):
        raise Wrong("x is changed in place, and backward needs it as it was: x = x + …, not x += …")
    for name, right in RIGHT.items():
        calls = given.get(name, [])
        if len(calls) != 1:
            raise Wrong(f"{name} is called {len(calls)} times, not once")
        found = as_sum(calls[0], tensors)
        if found != right:
            what = "returns" if name == "block" else "gets"
            why = WHY.get((name, found), "see the two lines of the docstring")
            raise Wrong(f"{name} {what} {found}, not {right}: {why}")


def as_sum(tensor, tensors: dict) -> str:
    """Which of the tensors add up to this one."""
    for n in range(1, len(tensors) + 1):
        for names in combinations(tensors, n):
            if torch.allclose(tensor, sum(tensors[name] for name in names), atol=1e-5):
                return " + ".join(names)
    return "no sum of x and the parts"


def check_mlp(mlp) -> None:
    x = torch.linspace(-3, 3, 13).view(1, 13, 1)
    right = 0.5 * x * (1 + torch.tanh((2 / torch.pi) ** 0.5 * (x + 0.044715 * x**3)))
    out = mlp(x, lambda x: x, lambda x: 2 * x)
    known = {
        "there is no GELU between c_fc and c_proj": 2 * x,
        "the activation is ReLU: GPT-2 has GELU": 2 * F.relu(x),
        "the GELU is the exact one, by erf: GPT-2 has the tanh formula": 2 * F.gelu(x),
        "the GELU is x·sigmoid(x), SiLU: GPT-2 has the tanh formula": 2 * F.silu(x),
        "the GELU comes after c_proj: put it between the two": F.gelu(2 * x, approximate="tanh"),
        "the MLP adds its own x: the block does that": 2 * right + x,
    }
    for words, wrong in known.items():
        if torch.allclose(out, wrong, atol=1e-5):
            raise Wrong(words)
    if not torch.allclose(out, 2 * right, atol=1e-5):
        raise Wrong(f"GELU(1) is {out[0, 8, 0] / 2:.4f}, not {right[0, 8, 0]:.4f}")
    x, c_fc, c_proj = torch.randn(2, 5, 3), torch.nn.Linear(3, 12), torch.nn.Linear(12, 3)
    if mlp(x, c_fc, c_proj).shape != x.shape:
        raise Wrong("the MLP's output does not have the shape of x")
