"""How an exercise is marked: by its check in checks/, which raises Wrong with a line to act on."""

import ast
import importlib.util
import sys
import traceback
from dataclasses import dataclass
from pathlib import Path

import torch

HERE = Path(__file__).parent
NAMES = sorted(path.stem for path in HERE.glob("[0-9][0-9]_*.py"))
# An exercise may import these and the standard library, except what imports a module by name.
LIBRARIES = {"torch", "numpy"} | set(sys.stdlib_module_names) - {"importlib", "runpy", "pkgutil"}
BY_ANOTHER_NAME = {"__import__", "exec", "eval"}


class Wrong(Exception):
    """What is wrong with an answer, in one line that says what to change."""


@dataclass(frozen=True)
class Mark:
    state: str  # done, not yet or wrong
    line: str = ""  # for a reader to act on


def load(path: Path):
    """A file as a module, though its name starts with a digit."""
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def mark(name: str, answer=None) -> Mark:
    """Mark an exercise: what its file defines, or another answer with the same names."""
    path = HERE / f"{name}.py"
    check = load(HERE / "checks" / path.name)
    try:
        if answer is None:
            refuse_ready_made(path, getattr(check, "READY_MADE", set()))
            answer = load(path)
        torch.manual_seed(0)
        check.check(answer)
    except Wrong as wrong:
        return Mark("wrong", str(wrong))
    except Exception as error:
        if isinstance(error, NotImplementedError) and not error.args:  # torch's own have a message
            where = traceback.extract_tb(error.__traceback__)[-1].name
            return Mark("not yet", f"not done yet: fill in {where} in exercises/{path.name}")
        return Mark("wrong", crash(path, error))
    return Mark("done")


def refuse_ready_made(path: Path, ready_made: set[str]) -> None:
    """Raises Wrong if a file imports the answer, or uses one of these names."""
    for node in ast.walk(ast.parse(path.read_text())):
        modules, names = [], set()
        match node:
            case ast.Import():
                modules = [alias.name for alias in node.names]
            case ast.ImportFrom():
                modules = ["." * node.level + (node.module or "")]
                names = {alias.name for alias in node.names} & ready_made
            case ast.Attribute():
                names = {node.attr} & ready_made
            case ast.Name():
                names = {node.id} & (ready_made | BY_ANOTHER_NAME)
        names |= {module for module in modules if module.split(".")[0] not in LIBRARIES}
        if names:
            raise Wrong(f"{path.name} uses {min(names)}, which has the answer: write it yourself")


def crash(path: Path, error: Exception) -> str:
    """A Python error as one line, with the line of the exercise that raised it."""
    lines = [f.lineno for f in traceback.extract_tb(error.__traceback__) if f.filename == str(path)]
    if isinstance(error, SyntaxError):
        lines = [error.lineno]
    if not lines and "NoneType" in str(error):
        return "None is returned: is a `return` missing?"
    where = f"in line {lines[-1]}" if lines else "where the check uses what is returned"
    said = error.msg if isinstance(error, SyntaxError) else str(error)
    return f"{type(error).__name__} {where}: {' '.join(said.split())}"
