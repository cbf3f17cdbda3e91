"""Stage 2: the naked training loop. Overfit 128 tokens, then recite them.

New here: nothing in common/. The loop stands in `train` below, and it is all there is to training:
predict, measure, differentiate, step. A model of 163 million parameters must be able to learn 128
tokens by heart; if it can't, something is wrong, and no larger run will tell you what.

    python 2_gpt2_train_128words.py

You will see the loss fall from about 11 to below 0.01 in 40 steps, and then the paragraph come
back, written by the model from the first token of each row: 100 % of the tokens recalled.
"""

import time
from dataclasses import dataclass

import torch

from common.cli import quoted, run
from common.device import pick_device, seed_everything
from common.generate import generate
from common.model import GPT, preset
from common.tokenizer import gpt2_tokenizer

B, T = 4, 32  # four rows of 32 tokens, and one more token as the last row's last target

PARAGRAPH = """\
A lighthouse keeper once tried to teach the sea to count. Every evening he carried a lantern down \
to the rocks and said the numbers aloud, one for each wave that broke beneath his feet. The sea, \
being old, had heard many teachers, and answered with the same long breath to all of them. Winter \
came, and the keeper wrote his lessons on paper, folded the pages into boats, and set them adrift \
at dawn. By spring the tide began to return them, page by page, in perfect order, each with a \
shell laid on the right sum. He laughed until the gulls flew up, then lit the lamp, opened a new \
notebook, and asked the moon to wait."""


@dataclass
class Options:
    model: str = "gpt2"  # a preset
    steps: int = 40
    lr: float = 3e-4
    seed: int = 1337
    device: str = "auto"  # auto, cpu, cuda or mps


def train(model: GPT, x: torch.Tensor, y: torch.Tensor, steps: int, lr: float) -> None:
    optimizer = torch.optim.AdamW(model.parameters(), lr=lr)
    for step in range(steps):
        start = time.perf_counter()
        _, loss = model(x, y)  # predict, and measure
        loss.backward()  # differentiate
        optimizer.step()
        optimizer.zero_grad()
        loss = loss.item()  # waits for the device
        seconds = time.perf_counter() - start
        print(f"step {step:>3}  loss {loss:8.4f}  {seconds * 1000:6.0f} ms")
        if step == 4:  # the first ones also warm up
            print(f"about {seconds * (steps - 5):.0f} s to go")


def recite(model: GPT, x: torch.Tensor, y: torch.Tensor) -> float:
    """Ask for each row back, greedily from its first token; the share of y that comes, 0 to 1."""
    written = generate(model, x[:, :1], max_new_tokens=T, temperature=0)
    print("\nfrom the first token of each row, the last of the row before, the model writes:")
    for row in written.tolist():
        print(quoted(gpt2_tokenizer().decode(row)), end="\n\n")
    return (written[:, 1:] == y).float().mean().item()


def main(options: Options) -> None:
    config = preset(options.model)
    device = pick_device(options.device)
    seed_everything(options.seed)
    ids = torch.tensor(gpt2_tokenizer().encode_ordinary(PARAGRAPH)[: B * T + 1], device=device)
    x, y = ids[:-1].view(B, T), ids[1:].view(B, T)  # y is what comes after each token of x
    model = GPT(config).to(device)
    print(f"{options.model} on {B} rows of {T} tokens, {options.steps} steps at {options.lr:g}")

    train(model, x, y, options.steps, options.lr)
    recalled = recite(model, x, y)
    print(f"recalled: {recalled:.1%} of {B * T} tokens")


if __name__ == "__main__":
    run(main, Options)

# To try:
#   python 2_gpt2_train_128words.py --steps 10          # not yet learned
#   python 2_gpt2_train_128words.py --lr 3e-2           # too fast: it learns nothing
#   python 2_gpt2_train_128words.py --model gpt-mini --steps 200 --lr 1e-3
