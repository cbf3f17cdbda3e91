"""Plot docs/parts.png: GPT-2's parts, in the order in which a batch goes through them, with shapes.

    python docs/parts.py

The shapes come from the 124M model itself, run on PyTorch's meta device, which computes only
shapes.
"""

import sys
from pathlib import Path

import torch
from matplotlib.figure import Figure
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))

from common.model import GPT, GPTConfig, causal_attention  # noqa: E402

B, T = 4, 1024
BLUE, GREEN, GREY = "#dbe9f6", "#e0f0dc", "#eeeeee"


def shapes_of_parts() -> dict[str, tuple[int, ...]]:
    """The shapes of each part's output and weight, by its name in the model."""
    found = {}

    def attention(q, k, v, dropout_p=0.0):
        found["q"] = tuple(q.shape)
        found["scores"] = tuple((q @ k.transpose(-2, -1)).shape)
        found["y"] = tuple(causal_attention(q, k, v).shape)
        return causal_attention(q, k, v)

    with torch.device("meta"):
        model, ids = GPT(GPTConfig(attention=attention)), torch.zeros(B, T, dtype=torch.long)
    for name, part in model.named_modules():

        def note(part, given, result, name=name):
            found[name] = tuple((result[0] if isinstance(result, tuple) else result).shape)

        part.register_forward_hook(note)
        if hasattr(part, "weight"):
            found[f"{name}.weight"] = tuple(part.weight.shape)
    model(ids)
    return found


def said(shape: tuple[int, ...]) -> str:
    return "(" + ", ".join(f"{n:,}" for n in shape) + ")"


def main() -> None:
    shapes = shapes_of_parts()
    figure = Figure(figsize=(13, 9.2), layout="constrained")
    axes = figure.subplots()
    axes.set(xlim=(0, 13), ylim=(0, 9.2))
    axes.axis("off")

    def box(x, y, title, detail="", color=BLUE, width=3.5):
        how = {"boxstyle": "round,pad=0.04", "facecolor": color, "edgecolor": "#555555"}
        axes.add_patch(FancyBboxPatch((x, y), width, 0.62, **how))
        center, middle = x + width / 2, y + (0.43 if detail else 0.31)
        axes.text(center, middle, title, ha="center", va="center", fontsize=11, weight="bold")
        axes.text(center, y + 0.17, detail, ha="center", va="center", fontsize=9)

    def arrow(start, end, label="", **how):
        axes.add_patch(FancyArrowPatch(start, end, arrowstyle="-|>", mutation_scale=12, **how))
        x, y = start[0] + 0.1, (start[1] + end[1]) / 2
        axes.text(x, y, label, va="center", fontsize=9, color="#1f4e79")

    def column(x, rows, top, step):
        """Boxes from the top down; each arrow has the shape that the box above it returns."""
        for k, (title, detail, color, result) in enumerate(rows):
            y = top - k * step
            box(x, y, title, detail, color)
            if result:
                arrow((x + 1.75, y - 0.04), (x + 1.75, y - step + 0.7), result)

    # By a part's name: the shapes of its weight and of its output.
    names = [name.removeprefix("transformer.") for name in shapes]
    out = dict(zip(names, map(said, shapes.values()), strict=True))
    weight = {name.removesuffix(".weight"): out[name] for name in names if name.endswith(".weight")}
    stream = out["h.0.ln_1"]
    model = [
        ("token ids", "idx", GREY, said((B, T))),
        ("wte + wpe", f"{weight['wte']} + {weight['wpe']}", BLUE, out["wte"]),
        ("block 1", "one of 12, drawn on the right", GREEN, stream),
        ("blocks 2 to 12", "", GREEN, stream),
        ("ln_f", weight["ln_f"], BLUE, out["ln_f"]),
        ("lm_head", f"{weight['lm_head']}, tied to wte from stage 4 on", BLUE, out["lm_head"]),
        ("logits", "softmax: the next token's probabilities", GREY, ""),
    ]
    block = [
        ("x", "the residual stream", GREY, stream),
        ("ln_1", weight["h.0.ln_1"], BLUE, out["h.0.ln_1"]),
        ("attn", "tokens exchange information", GREEN, out["h.0.attn"]),
        ("+", "x is added", GREY, stream),
        ("ln_2", weight["h.0.ln_2"], BLUE, out["h.0.ln_2"]),
        ("mlp", "each token by itself", GREEN, out["h.0.mlp"]),
        ("+", "the sum so far is added", GREY, ""),
    ]
    attn = [
        ("attn.c_attn", weight["h.0.attn.c_attn"], BLUE, out["h.0.attn.c_attn"]),
        ("split into q, k, v and 12 heads", "", GREY, f"each {out['q']}"),
        ("softmax(q kᵀ / √64)", "over a position and its past", GREY, out["scores"]),
        ("· v", "", GREY, out["y"]),
        ("attn.c_proj", weight["h.0.attn.c_proj"], BLUE, out["h.0.attn.c_proj"]),
    ]
    mlp = [
        ("mlp.c_fc", weight["h.0.mlp.c_fc"], BLUE, out["h.0.mlp.c_fc"]),
        ("gelu", "", GREY, out["h.0.mlp.c_fc"]),
        ("mlp.c_proj", weight["h.0.mlp.c_proj"], BLUE, out["h.0.mlp.c_proj"]),
    ]
    column(0.2, model, top=8.2, step=1.25)
    column(4.9, block, top=8.2, step=1.25)
    column(9.3, attn, top=8.2, step=0.98)
    column(9.3, mlp, top=2.6, step=0.98)
    skip = dict(connectionstyle="arc3,rad=0.42", color="#c55a11", linewidth=1.4)
    arrow((4.86, 8.5), (4.86, 4.76), **skip)
    arrow((4.86, 4.6), (4.86, 1.0), **skip)
    titles = ((0.2, 9.05, "the model"), (4.9, 9.05, "a block"), (9.3, 9.05, "attn"))
    for x, y, title in (*titles, (9.3, 3.4, "mlp")):
        axes.text(x, y, title, fontsize=14, weight="bold", va="center", color="#1f4e79")
    batch = f"GPT-2 124M, a batch of B = {B} rows of T = {T:,} tokens"
    where = "in the boxes: shapes of weights; beside the arrows: shapes of activations"
    axes.text(0.2, 0.05, f"{batch}; {where}", fontsize=9)
    figure.savefig(ROOT / "docs" / "parts.png", dpi=130)


if __name__ == "__main__":
    main()
