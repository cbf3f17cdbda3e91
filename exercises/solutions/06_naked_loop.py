import contextlib
import io
import re

import torch

FILE = "2_gpt2_train_128words.py"


def answer(module) -> dict:
    def train(model, x, y, steps, lr):
        """The losses are those that the script prints."""
        with contextlib.redirect_stdout(io.StringIO()) as out:
            module.train(model, x, y, module.Options(steps=steps, lr=lr))
        return [float(loss) for loss in re.findall(r"loss +(\S+)", out.getvalue())]

    return {"train": train}


def losses_as_tensors(model, x, y, steps, lr):
    optimizer, losses = torch.optim.AdamW(model.parameters(), lr=lr), []
    for _ in range(steps):
        losses.append(model(x, y)[1])
        losses[-1].backward()
        optimizer.step()
        optimizer.zero_grad()
    return losses


WRONG = {
    "do not change": [("        loss.backward()", "        model(x, y)[1].backward(); "
                       "optimizer.zero_grad()")],
    "zero_grad() is missing": [("optimizer.zero_grad()", "pass")],
    "made anew": [("    for step in", "    made = lambda: torch.optim.AdamW("
                   "model.parameters(), lr=options.lr)\n    for step in"),
                  ("        start = ", "        optimizer = made(); start = ")],
    "plain gradient descent": [("optim.AdamW", "optim.SGD")],
    "those of Adam": [("optim.AdamW", "optim.Adam")],
    "default learning rate": [(", lr=options.lr", "")],
    "of 4 steps": [("range(options.steps)", "range(options.steps - 1)")],
    "of 6 steps": [("range(options.steps)", "range(options.steps + 1)")],
    "learns x from y": [("model(x, y)", "model(y, x)")],
    "of 5 steps of AdamW": [("lr=options.lr", "lr=2 * options.lr")],
    "as after the update": [("loss.item()", "model(x, y)[1].item()")],
    "the losses are tensors": {"train": losses_as_tensors},
    "0 losses are returned": [("        print(f\"step", "        str(f\"step")],
}  # fmt: skip
