"""Answers, for the tests of the exercises alone. A reader of the course need not open this.

The right answer is the project's own code, by a thin adapter. A known wrong answer is the same code
with some text replaced; its check must find it out, in a line that holds the given words.
"""

import types
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parent.parent


@dataclass(frozen=True)
class Solution:
    file: str  # of the project
    adapter: Callable  # the file as a module → what the exercise asks for, by name
    wrong: dict[str, tuple]  # words of the line → (old, new), (old, new) …, or another answer

    def right(self) -> types.SimpleNamespace:
        return self.changed()

    def wrong_answer(self, words: str) -> types.SimpleNamespace:
        return self.changed(*self.wrong[words])

    def changed(self, *replacements: tuple[str, str]) -> types.SimpleNamespace:
        text = (ROOT / self.file).read_text()
        for old, new in replacements:
            assert old in text, f"solutions.py: {self.file} has no {old!r} any more"
            text = text.replace(old, new)
        module = types.ModuleType(self.file)
        exec(compile(text, self.file, "exec"), module.__dict__)
        return types.SimpleNamespace(**self.adapter(module))


def causal_attention(module) -> dict:
    return {"causal_attention": module.causal_attention}


SOLUTIONS = {
    "01_causal_attention": Solution("common/model.py", causal_attention, {
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
        "work on the last two": [("scores.masked_fill", "scores.mean(1, keepdim=True).masked_fill")],
    }),
}  # fmt: skip
