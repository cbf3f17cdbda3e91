"""The exercises: the project's own code solves them, wrong answers are told apart, none is solved
as it stands, and none can be solved by an import."""

import re
import shutil
import subprocess
import sys

import pytest
from conftest import ROOT, SCRIPTS

from exercises.__main__ import main
from exercises.marking import HERE, NAMES, Mark, Wrong, mark, refuse_ready_made


def pytest_exercises(*options: str) -> subprocess.CompletedProcess:
    """pytest exercises/, in 80 columns, as a reader runs it."""
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "exercises/", *options]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True)


def test_the_project_solves_them_and_wrong_answers_are_told_apart():
    done = pytest_exercises("--solutions")
    assert done.returncode == 0, done.stdout
    assert int(re.search(r"(\d+) passed", done.stdout)[1]) > 10 * len(NAMES)


def test_unsolved_each_gives_one_line_in_80_columns():
    stdout = pytest_exercises("-k", "01 or 12").stdout
    lines = [line for line in stdout.splitlines() if line.startswith(("01_", "12_"))]
    assert lines[0].startswith("01_causal_attention   not done yet: fill in causal_attention")
    assert len(lines) == 2 and "Traceback" not in stdout
    assert max(map(len, stdout.splitlines())) <= 80


@pytest.mark.parametrize("name", NAMES)
def test_an_exercise_is_not_solved_and_has_all_parts(name):
    found, text = mark(name), (HERE / f"{name}.py").read_text()
    assert found.state == "not yet" and re.search(r"fill in \w+ in exercises/", found.line)
    assert text.count("# region Hint.") == text.count("# endregion") == 1
    stage = int(re.match(rf'"""Exercise {int(name[:2])}, stage (\d): ', text)[1])
    to_try = SCRIPTS[stage].read_text().split("# To try:")[1]
    assert name[:2] in to_try and name[3:] in to_try


@pytest.mark.parametrize(
    "line",
    [
        "from common.model import causal_attention",
        "import transformers",
        "import importlib",
        "from . import solutions",
        "from torch.nn.functional import scaled_dot_product_attention as f",
        "import torch.nn.functional as F; F.scaled_dot_product_attention",
        "from torch.nn.functional import *; scaled_dot_product_attention",
        "__import__('common.model')",
    ],
)
def test_an_import_of_the_answer_is_refused(line, tmp_path):
    path, ready_made = tmp_path / "answer.py", {"scaled_dot_product_attention"}
    path.write_text(line)
    with pytest.raises(Wrong, match="answer.py uses .*: write it yourself"):
        refuse_ready_made(path, ready_made)
    path.write_text("import math\nimport torch.nn.functional as F\nmodel.eval()\n")
    refuse_ready_made(path, ready_made)


@pytest.fixture
def reader(tmp_path, monkeypatch):
    """A copy of the exercises, to write answers into."""
    copy = tmp_path / "exercises"
    shutil.copytree(HERE, copy)
    monkeypatch.setattr("exercises.marking.HERE", copy)
    return copy


@pytest.mark.parametrize(
    "body, line",
    [
        ("return 1 +", "SyntaxError in line "),
        ("return weights", "NameError in line "),
        ("import torch; torch.ones(1, device='meta').cpu()", "NotImplementedError in line "),
        ("from common.optim import learning_rate", "uses common.optim, which has the answer"),
        ("return None", "None is returned"),
        ("return lr", "step 0 has 1.0000 of the maximum, not 0.1000: there"),
    ],
)
def test_a_wrong_answer_is_one_line(reader, body, line):
    path = reader / "12_learning_rate.py"
    path.write_text(path.read_text().replace("raise NotImplementedError", body))
    found = mark("12_learning_rate")
    assert found.state == "wrong" and line in found.line and "\n" not in found.line


def test_a_right_answer_is_done(reader):
    path = reader / "09_pad_vocab.py"
    body = """n = -len(weight) % multiple
    return torch.cat((weight, weight.mean(0).expand(n, -1)))"""
    path.write_text(path.read_text().replace("raise NotImplementedError", body))
    assert mark("09_pad_vocab") == Mark("done")


def test_each_stage_has_three_questions():
    stages = (HERE / "questions.md").read_text().split("\n## Stage ")[1:]
    assert [int(stage[0]) for stage in stages] == list(SCRIPTS)
    for stage in stages:
        assert stage.count("<details><summary>Answer</summary>\n\n") == 3
        assert stage.count("\n</details>\n") == 3


def test_where_a_reader_stands(capsys):
    main(["1", "02"])
    assert capsys.readouterr().out == (
        "01_causal_attention   not yet\n"
        "02_block              not yet\n"
        "0 of 2 done; the next one is exercises/01_causal_attention.py\n"
    )
    with pytest.raises(SystemExit, match="2"):
        main(["99"])
    error = "error: there is no exercise 99: give some of 01 to 16\n"
    assert capsys.readouterr().err == error
