"""Stage 2: the naked training loop. Memorize 128 tokens, then recite them.

New here: nothing in common/. The loop is `train` below, and it is all there is to training:
predict, measure the loss, differentiate, update. A model of 163 million parameters must be able to
memorize 128 tokens. If it can't, something is wrong, and a larger run will not tell you what.

    python 2_gpt2_train_128words.py        # a minute on two CPU cores

You will see the loss fall from about 11 to below 0.01 in 40 steps. Then the model recites each row
from its first token, and recalls 100 % of the 128 tokens.
"""

import time
from dataclasses import dataclass

import torch

from common.generate import generate
from common.kit.cli import quoted, run
from common.kit.device import pick_device
from common.model import GPT
from common.presets import preset
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
    model: str = "gpt2"  # train this preset, or layers x heads x width, as in 4x2x128
    steps: int = 40  # train for this many steps
    lr: float = 3e-4  # raise the learning rate to learn faster, until the loss jumps
    seed: int = 1337  # change it to draw other weights
    device: str = "auto"  # run on auto, cpu, cuda or mps


def train(model: GPT, x: torch.Tensor, y: torch.Tensor, options: Options) -> None:
    """Train model on one batch, x and y (B, T) int64."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=options.lr)
    for step in range(options.steps):
        start = time.perf_counter()
        loss = model(x, y)[1]  # predict, and measure the loss
        loss.backward()  # differentiate
        optimizer.step()  # update the weights
        optimizer.zero_grad()  # otherwise the next backward would add to these gradients
        loss = loss.item()  # waits until the device has finished the step
        ms = (time.perf_counter() - start) * 1000
        print(f"step {step:>2} of {options.steps}  loss {loss:8.4f}  {ms:6.0f} ms")


def recite(model: GPT, x: torch.Tensor, y: torch.Tensor) -> float:
    """Generate each row greedily from its first token. Returns the share of y it recalls."""
    written = generate(model, x[:, :1], max_new_tokens=T, temperature=0)
    print("\nfrom each row's first token, the model writes the row and one token more:")
    for row in written.tolist():
        print(quoted(gpt2_tokenizer().decode(row)), end="\n\n")
    return (written[:, 1:] == y).float().mean().item()


def main(options: Options) -> None:
    config = preset(options.model)
    device = pick_device(options.device)
    torch.manual_seed(options.seed)
    ids = torch.tensor(gpt2_tokenizer().encode_ordinary(PARAGRAPH)[: B * T + 1], device=device)
    x, y = ids[:-1].view(B, T), ids[1:].view(B, T)  # y[b, t] is the token after x[b, t]
    model = GPT(config).to(device)
    print(f"{options.model} on {B} rows of {T} tokens, {options.steps} steps")
    train(model, x, y, options)
    recalled = recite(model, x, y)
    print(f"recalled: {recalled:.1%} of {B * T} tokens")


if __name__ == "__main__":
    run(main, Options)

# To try:
#   python 2_gpt2_train_128words.py --steps 3           # not yet memorized
#   python 2_gpt2_train_128words.py --lr 3e-2           # too high: the loss jumps to 34
#   python 2_gpt2_train_128words.py --model gpt-mini --steps 200 --lr 1e-3
#   python -m exercises 06    # yours to fill in: naked_loop
