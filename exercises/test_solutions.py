"""pytest exercises/ --solutions: the project's own code is right, and each known wrong answer is
found out by its own line."""

import pytest

from exercises.marking import NAMES, mark
from exercises.solutions import SOLUTIONS

WRONG = [(name, words) for name, solution in SOLUTIONS.items() for words in solution.wrong]


@pytest.mark.parametrize("name", NAMES)
def test_the_project_is_right(name):
    if line := mark(name, SOLUTIONS[name].right()).line:
        pytest.fail(line, pytrace=False)


@pytest.mark.parametrize("name, words", WRONG, ids=lambda value: value)
def test_a_wrong_answer_is_found_out(name, words):
    line = mark(name, SOLUTIONS[name].wrong_answer(words)).line
    if words not in line:
        pytest.fail(f"should say '{words}', but says '{line}'", pytrace=False)
