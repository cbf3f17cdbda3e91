"""Plot docs/attention.png: what two heads of a trained model attend to.

    python docs/attention.py    # a minute or two on two CPU cores

A model of two layers learns to continue texts that repeat a sequence of 4 to 16 random words. Only
attention can find the word that follows. Two heads do it together (Elhage et al., 2021; Olsson et
al., 2022). One, in the first layer, attends to the tokens just before, so each position knows which
word it follows. The other, in the second layer, attends to the position after an earlier copy of
its own word: an induction head. Where there is no copy yet, it attends to the first word, which
does no harm.
"""

import sys
from pathlib import Path

import torch
from matplotlib.figure import Figure

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))

from common.init import init_weights, tie_weights  # noqa: E402
from common.model import GPT, GPTConfig  # noqa: E402
from common.optim import adamw, learning_rate, parameter_groups, set_lr  # noqa: E402

WORDS = (
    "king queen sword rose night day moon sun lord lady fool crown blood love death ghost sea "
    "storm ship gold ring friend heart hand eye tongue dream sleep"
).split()
T, STEPS, LR = 32, 1500, 3e-3
SHOWN = 10  # words, before they repeat
SIZES = dict(n_layer=2, n_head=2, n_embd=64, block_size=T, vocab_size=len(WORDS))


def batch(rows: int, generator: torch.Generator) -> torch.Tensor:
    """Ids (rows, T + 1). Each row repeats its own random words, 4 to 16 of them. So the distance
    from a word to its copy differs between rows: the position alone does not tell it."""
    words = torch.randint(len(WORDS), (rows, 16), generator=generator)
    period = torch.randint(4, 17, (rows, 1), generator=generator)
    return words.gather(1, torch.arange(T + 1) % period)


def train() -> GPT:
    generator = torch.Generator().manual_seed(1)
    model = init_weights(tie_weights(GPT(GPTConfig(**SIZES))), seed=1)
    optimizer = adamw(parameter_groups(model, weight_decay=0.1), LR)
    for step in range(STEPS):
        set_lr(optimizer, learning_rate(step, LR, 100, STEPS))
        ids = batch(64, generator)
        loss = model(ids[:, :-1], ids[:, 1:])[1]
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        if step % 100 == 0 or step == STEPS - 1:
            print(f"step {step:>4}  loss {loss.item():.3f}")
    return model.eval()


@torch.no_grad()
def weights_of(model: GPT, ids: torch.Tensor) -> list[torch.Tensor]:
    """The attention weights (n_head, T, T) of each layer for ids (T,)."""
    seen = []

    def watched(q, k, v, dropout_p=0.0):
        scores = q @ k.transpose(-2, -1) / q.size(-1) ** 0.5
        future = torch.ones_like(scores, dtype=torch.bool).triu(1)
        seen.append(scores.masked_fill(future, float("-inf")).softmax(-1))
        return seen[-1] @ v

    copy = GPT(GPTConfig(**SIZES, attention=watched))
    copy.load_state_dict(model.state_dict())
    copy(ids[None])
    return [weights[0] for weights in seen]


def best_head(weights: torch.Tensor, distance: int, first: int) -> tuple[int, float]:
    """The head of weights (n_head, T, T) that attends most to the position `distance` back, and its
    average weight on it, from position `first` on."""
    share = weights.diagonal(-distance, -2, -1)[:, max(0, first - distance) :].mean(-1)
    return share.argmax().item(), share.max().item()


def main() -> None:
    model = train()
    generator = torch.Generator().manual_seed(5)
    words = torch.randperm(len(WORDS), generator=generator)[:SHOWN]
    ids = words.repeat(2)
    layers = weights_of(model, ids)
    figure = Figure(figsize=(13, 6.8), layout="constrained")
    panels = figure.subplots(1, 2)
    titles = (
        ("attends to itself and the tokens just before", "on the one before", 1, 1),
        ("attends to what followed the same word", "on it, where there is one", SHOWN - 1, SHOWN),
    )
    labels = [WORDS[i] for i in ids]
    for layer, (axes, about) in enumerate(zip(panels, titles, strict=True)):
        title, where, distance, first = about
        head, share = best_head(layers[layer], distance, first)
        print(f"layer {layer}, head {head} {title}: {share:.0%} {where}")
        image = axes.imshow(layers[layer][head], cmap="Blues", vmin=0, vmax=1)
        axes.set_title(f"layer {layer}, head {head}: {title}\n({share:.0%} of its weight {where})")
        axes.set_xticks(range(len(ids)), labels, rotation=90)
        axes.set_yticks(range(len(ids)), labels)
        axes.set_xlabel("attended to")
        for edge in (axes.axhline, axes.axvline):
            edge(SHOWN - 0.5, color="tab:orange", linewidth=1)
    panels[0].set_ylabel("from (read downwards; the words come again below the line)")
    figure.colorbar(image, ax=panels, shrink=0.6, label="attention weight")
    figure.savefig(ROOT / "docs" / "attention.png", dpi=130)


if __name__ == "__main__":
    main()
