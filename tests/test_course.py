"""The rules of the house: what may use what, how much there is to read, what a stage changes."""

import ast
import re
import subprocess
import sys

import pytest
from conftest import ROOT, SCRIPTS

sys.path.insert(0, str(ROOT / "docs"))
from readme_table import delta, train_lines  # noqa: E402

# A root module → the stage that introduces it.
ROOT_MODULES = {
    "model": 0, "presets": 0, "tokenizer": 1, "pretrained": 1, "generate": 1, "evals": 1,
    "hellaswag": 1, "data": 3, "init": 4, "speed": 5, "ladder": 5, "optim": 6, "muon": 7,
    "decode": 9, "quantize": 9, "bandwidth": 9, "talk": 9,
}  # fmt: skip
# A room → the rooms that it may import; "" is the root.
ROOMS = {
    "kit": {"kit"},
    "": {"kit", ""},
    "run": {"kit", "", "run"},
    "search": {"kit", "", "run", "search"},
    "shards": {"kit", "shards"},
    "report": {"kit", "", "report"},
    "speedrun": {"kit", "", "run", "speedrun"},
}
SHARED_WITH_SHARDS = {"common.tokenizer", "common.run.tokenfiles"}
# Stage → the lines of train that it may remove, and may add.
BOUNDS = {3: 12, 4: 12, 5: 20, 6: 20, 7: 40}
MODULES = sorted(path for path in (ROOT / "common").rglob("*.py") if path.name != "__init__.py")


def imports(path):
    """The modules of common/ that a file imports, however it writes that."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom):
            assert not node.level, f"{path.name}: name modules in full"
            names |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
        elif isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
    files = {".".join(module.relative_to(ROOT).with_suffix("").parts) for module in MODULES}
    return names & files


def room(module: str) -> str:
    """common.kit.cli → kit, common.model → the root."""
    return module.split(".")[1] if module.count(".") == 2 else ""


def test_every_root_module_has_its_stage():
    assert {path.stem for path in (ROOT / "common").glob("*.py")} - {"__init__"} == set(
        ROOT_MODULES
    )


@pytest.mark.parametrize("stage", SCRIPTS)
def test_a_script_uses_only_what_has_been_introduced(stage):
    allowed = (
        {"kit", ""} | ({"run"} if stage >= 7 else set()) | ({"search"} if stage == 8 else set())
    )
    for module in imports(SCRIPTS[stage]):
        assert room(module) in allowed, f"{module} is of a later room"
        if not room(module):
            assert ROOT_MODULES[module.split(".")[1]] <= stage, f"{module} comes later"


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_a_module_uses_only_its_room_and_those_below(path):
    here = ".".join(path.relative_to(ROOT).with_suffix("").parts)
    for module in imports(path):
        if room(here) == "shards" and module in SHARED_WITH_SHARDS:
            continue
        assert room(module) in ROOMS[room(here)], f"{module} is of a higher room"
        if room(here) == "":
            stages = [ROOT_MODULES.get(name.split(".")[1], 0) for name in (module, here)]
            assert stages[0] <= stages[1], f"{module} comes later"


@pytest.mark.parametrize("stage", BOUNDS)
def test_a_stage_changes_few_lines_of_train(stage):
    removed, added = delta(SCRIPTS[stage - 1], SCRIPTS[stage])
    assert removed <= BOUNDS[stage] and added <= BOUNDS[stage], (removed, added)
    source = SCRIPTS[stage].read_text()
    begin = source.index("def train(")
    train = source[begin : source.index("\n\n\n", begin)]
    assert ("# new: " in train) == (removed + added > 0)  # what is new says why


def test_train_keeps_its_order_and_its_names():
    """optimizer, step, x and y, loss, backward, step, row: in this order from stage 2 to 7."""
    order = ["optimizer = ", "for step in range(", "start = time.perf_counter()", "loss",
             ".backward()", "optimizer", "optimizer.zero_grad()", "ms = "]  # fmt: skip
    for stage in range(2, 8):
        text, place = "\n".join(train_lines(SCRIPTS[stage])), 0
        for statement in order:
            place = text.index(statement, place) + 1
        for name in ("batches", "val", "log", "log.row(") if stage > 2 else ():
            assert name in text


def test_the_options_of_the_course_are_values():
    """Rule 6: a reader of stages 2 to 6 sees the hyper-parameters."""
    for stage in range(2, 7):
        for node in ast.parse(SCRIPTS[stage].read_text()).body:
            if isinstance(node, ast.ClassDef) and node.name == "Options":
                for field in node.body:
                    empty = ast.unparse(field.value) == "None"
                    assert not empty or field.target.id == "json", field.target.id


def code_lines(path):
    return sum(bool(line.strip()) for line in path.read_text().splitlines())


def test_files_can_be_read_at_one_sitting():
    assert code_lines(ROOT / "common" / "model.py") <= 110
    for path in MODULES:
        assert code_lines(path) <= 170, path.name
    for stage, path in SCRIPTS.items():
        assert code_lines(path) <= (120 if stage < 5 else 170 if stage < 7 else 220), path.name


def test_the_course_is_not_long():
    """Stages 0 to 6 and every root module that they introduce."""
    paths = [path for stage, path in SCRIPTS.items() if stage <= 6]
    paths += [ROOT / "common" / f"{name}.py" for name, stage in ROOT_MODULES.items() if stage <= 6]
    assert sum(len(path.read_text().splitlines()) for path in paths) <= 2300


@pytest.mark.parametrize("path", [*SCRIPTS.values(), *MODULES], ids=lambda path: path.name)
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
            assert called <= {"Path", "dict", "recipe", "len", "re.compile"}, ast.unparse(node)


def test_options_have_one_name_everywhere():
    """The nine that most scripts have, and what a stage has of its own."""
    known = {"model", "data", "steps", "batch_size", "block_size", "lr", "seed", "out", "device"}
    train = {"total_batch_tokens", "warmup_steps", "weight_decay", "clip", "dtype", "attention",
             "compile", "prompt", "track", "lr_floor"}  # fmt: skip
    own = {
        1: {"prompt", "samples", "max_new_tokens", "temperature", "top_k", "eval_tokens", "export",
            "stride", "hellaswag", "hellaswag_file", "hellaswag_limit"},
        5: {"rungs", "eval_tokens", "json"},
        6: train | {"betas"},
        7: train | {"optimizer", "vocab_size", "recipe", "init_from", "stop_at", "dropout",
            "eval_every", "eval_tokens", "eval_hellaswag", "hellaswag_file", "hellaswag_limit",
            "checkpoint_every", "keep", "resume", "restart", "shard"},
        8: {"phases", "sampler", "storage", "n_embd", "n_layer", "n_head", "eval_tokens"},
        9: {"prompt", "interactive", "max_new_tokens", "stop", "samples", "temperature", "top_k",
            "top_p", "compile", "rungs", "eval_tokens", "json"},
    }  # fmt: skip
    for stage, path in SCRIPTS.items():
        options = next(
            node for node in ast.parse(path.read_text()).body
            if isinstance(node, ast.ClassDef) and node.name == "Options"
        )  # fmt: skip
        fields = {node.target.id for node in options.body if isinstance(node, ast.AnnAssign)}
        assert "device" in fields and fields - known == own.get(stage, set()), stage


def test_the_readme_table_is_what_the_scripts_say():
    command = [sys.executable, str(ROOT / "docs" / "readme_table.py"), "--check"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_the_readme_commands_are_what_ci_runs():
    readme = (ROOT / "README.md").read_text()
    commands = re.findall(r"```sh\n(.*?)```", readme, flags=re.DOTALL)
    assert "5_gpt2_train_speedup.py" in commands[0]
    assert "pytest tests/" in commands[1]
    ci = (ROOT / ".ci" / "run").read_text()
    assert "README.md" in ci and "grep 'pytest tests/'" in ci and 'pipefail -c "$command"' in ci
