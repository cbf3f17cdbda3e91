"""pytest exercises/ --solutions: the project's own code is right, and each known wrong answer gets
its own line.

A file in solutions/ has FILE, the project's file with the answer; `answer(module)`, an adapter that
returns what the exercise asks for, by name; and WRONG: the words of a line → the replacements in
FILE that cause it, or another answer. A reader of the course need not open them.
"""

import types
from pathlib import Path

import pytest

from exercises.marking import HERE, NAMES, load, mark

SOLUTIONS = {name: load(HERE / "solutions" / f"{name}.py") for name in NAMES}
WRONG = [(name, words) for name in NAMES for words in SOLUTIONS[name].WRONG]


def answer(solution, replacements: list[tuple[str, str]]) -> types.SimpleNamespace:
    """The project's answer, with some text of its FILE replaced."""
    text = (Path(HERE).parent / solution.FILE).read_text()
    for old, new in replacements:
        assert old in text, f"{solution.FILE} has no {old!r} any more: change solutions/"
        text = text.replace(old, new)
    module = types.ModuleType(solution.FILE)
    exec(compile(text, solution.FILE, "exec"), module.__dict__)
    return types.SimpleNamespace(**solution.answer(module))


@pytest.mark.parametrize("name", NAMES)
def test_the_project_is_right(name):
    if line := mark(name, answer(SOLUTIONS[name], [])).line:
        pytest.fail(line, pytrace=False)


@pytest.mark.parametrize("name, words", WRONG, ids=lambda value: value)
def test_a_wrong_answer_is_found_out(name, words):
    wrong = SOLUTIONS[name].WRONG[words]
    given = types.SimpleNamespace(**wrong) if isinstance(wrong, dict) else None
    line = mark(name, given or answer(SOLUTIONS[name], wrong)).line
    if words not in line:
        pytest.fail(f"should say '{words}', but says '{line}'", pytrace=False)
