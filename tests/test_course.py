"""The rules of the house, as ../README.md and the scripts' docstrings promise them."""

import ast
import re
import subprocess
import sys

import pytest
from conftest import ROOT, SCRIPTS

# module → (the stage that introduces it, its floor)
HOUSE = {
    "model": (0, 0), "device": (0, 0), "cli": (0, 0), "tokenizer": (1, 0), "download": (1, 0),
    "corpus": (1, 0), "pretrained": (1, 1), "generate": (1, 1), "evals": (1, 1),
    "hellaswag": (1, 1), "data": (3, 1), "runlog": (3, 1), "init": (4, 1), "speed": (5, 1),
    "bench": (5, 2), "optim": (6, 2), "disk": (6, 2), "distributed": (6, 2), "checkpoint": (6, 2),
    "recipes": (6, 2), "start": (6, 2), "stepbench": (6, 2), "sources": (6, 2), "documents": (6, 2),
    "tokenfiles": (6, 2), "shardwriter": (6, 2), "shards": (6, 2),
    "phases": (7, 2), "draw": (7, 2), "search": (7, 2), "searchstart": (7, 2),
    "importance": (7, 2), "searchplots": (7, 2),
}  # fmt: skip


def imports(path):
    """The modules of common/ that a file imports, however it writes that."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom):
            assert not node.level, f"{path.name}: name modules in full"
            names |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
        elif isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
    return {name.split(".")[1] for name in names if name.startswith("common.")}


def test_every_module_has_its_place():
    assert {p.stem for p in (ROOT / "common").glob("*.py")} - {"__init__"} == set(HOUSE)


@pytest.mark.parametrize("stage", SCRIPTS)
def test_a_script_uses_only_what_has_been_introduced(stage):
    for module in imports(SCRIPTS[stage]):
        assert HOUSE[module][0] <= stage, f"{module} comes later"


@pytest.mark.parametrize("module", HOUSE)
def test_a_module_uses_only_its_floor_and_below(module):
    for used in imports(ROOT / "common" / f"{module}.py"):
        assert HOUSE[used][1] <= HOUSE[module][1], f"{used} is on a higher floor"
        assert HOUSE[used][0] <= HOUSE[module][0], f"{used} comes later"


def code_lines(path):
    return sum(bool(line.strip()) for line in path.read_text().splitlines())


def test_files_can_be_read_at_one_sitting():
    assert code_lines(ROOT / "common" / "model.py") <= 140
    for module in HOUSE:
        assert code_lines(ROOT / "common" / f"{module}.py") <= 170
    for stage, path in SCRIPTS.items():
        assert code_lines(path) <= (120 if stage < 5 else 220)


@pytest.mark.parametrize("path", [*SCRIPTS.values(), *sorted((ROOT / "common").glob("*.py"))])
def test_no_work_at_import(path):
    """At the top level there are definitions and constants; work waits for main."""
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, ast.If):
            assert ast.unparse(node.test) == "__name__ == '__main__'"
        else:
            docstring = isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
            kinds = (ast.Import, ast.ImportFrom, ast.FunctionDef, ast.ClassDef, ast.Assign)
            assert docstring or isinstance(node, kinds), ast.unparse(node)
        if isinstance(node, ast.Assign):  # a constant: a value, sizes, a place
            lambdas = [n for n in ast.walk(node.value) if isinstance(n, ast.Lambda)]
            later = {n for part in lambdas for n in ast.walk(part)}
            calls = [n for n in ast.walk(node.value) if isinstance(n, ast.Call) and n not in later]
            called = {ast.unparse(call.func) for call in calls}
            assert called <= {"Path", "GPTConfig", "recipe", "len", "re.compile"}, ast.unparse(node)


def test_options_have_one_name_everywhere():
    """The nine that most scripts have, and what a stage has of its own."""
    known = {"model", "data", "steps", "batch_size", "block_size", "lr", "seed", "out", "device"}
    own = {
        1: {"prompt", "samples", "max_new_tokens", "temperature", "top_k", "eval_tokens", "export",
            "stride", "hellaswag", "hellaswag_file", "hellaswag_most"},
        5: {"upto", "only", "json"},
        6: {"recipe", "init_from", "total_batch_tokens", "stop_at", "warmup_steps", "weight_decay",
            "clip", "dropout", "dtype", "attention", "compile", "eval_every", "eval_tokens",
            "eval_hellaswag", "hellaswag_file", "hellaswag_most", "checkpoint_every", "keep",
            "prompt", "resume", "bench", "shard", "tensorboard"},
        7: {"phases", "sampler", "space", "n_embd", "n_layer", "n_head", "eval_tokens"},
    }  # fmt: skip
    for stage, path in SCRIPTS.items():
        source = path.read_text()
        options = next(
            node for node in ast.parse(source).body
            if isinstance(node, ast.ClassDef) and node.name == "Options"
        )  # fmt: skip
        fields = {node.target.id for node in options.body if isinstance(node, ast.AnnAssign)}
        assert "device" in fields and fields - known == own.get(stage, set())


def test_the_readme_table_is_what_the_scripts_say():
    command = [sys.executable, str(ROOT / "tests" / "readme_table.py"), "--check"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_the_readme_commands_are_what_ci_runs():
    readme = (ROOT / "README.md").read_text()
    commands = re.findall(r"```sh\n(.*?)```", readme, flags=re.DOTALL)
    assert "5_gpt2_train_speedup.py" in commands[0]
    assert "pytest tests/" in commands[1]
    ci = (ROOT / ".ci" / "run").read_text()
    assert "README.md" in ci and "grep 'pytest tests/'" in ci and 'pipefail -c "$command"' in ci
