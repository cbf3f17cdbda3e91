"""Stage 8: many trials briefly, the best of them longer; nothing twice, nothing lost."""

import contextlib
import io
import json
import math
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
import tomllib
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from conftest import load_script, started
from helpers import only_train
from optuna.trial import TrialState
from safetensors.torch import load_file

from common.data import Batches, load_tokens
from common.evals import evaluate
from common.init import init_weights, tie_weights
from common.kit.cli import run
from common.model import GPT, GPTConfig
from common.optim import adamw, parameter_groups
from common.run import checkpoint
from common.search.phases import SPACE as NAMES
from common.search.phases import (
    Phase,
    config_of,
    read_phases,
    read_space,
)  # fmt: skip
from common.search.study import Search
from common.search.trial import Trial
from common.speed import Setting, autocast, autocast_dtype, build, pad_vocab

CPU = torch.device("cpu")
# Trials of milliseconds a step.
SMALL = (
    "--phases", "5x4,2x8,1x12", "--lr", "1e-3", "1e-2", "--batch-size", "2", "4",
    "--block-size", "16", "--n-embd", "16", "--n-head", "1", "--n-layer", "1", "2",
    "--eval-tokens", "100",
)  # fmt: skip
ONE = ("--lr", "1e-2", "--batch-size", "2", "--n-layer", "1")


@pytest.fixture(autouse=True)
def no_pictures(monkeypatch):
    """They take most of a small search's time. `small` has them; tests/test_8_report.py checks."""
    monkeypatch.setattr("common.search.report.plot_curves", lambda *_: None)
    monkeypatch.setattr("common.search.report.importances", lambda trials, names: {})


def search(*options: str) -> str:
    """A search in this process; what it printed."""
    script, stdout = load_script(8), io.TextIOWrapper(io.BytesIO(), "utf-8", write_through=True)
    with contextlib.redirect_stdout(stdout):
        run(script.main, script.Options, [*options, "--device", "cpu"])
    return stdout.buffer.getvalue().decode()


# A search without pictures, as in no_pictures, in a process of its own.
IN_A_PROCESS = """
import sys

import common.search.report
from common.kit.cli import run
from conftest import load_script

common.search.report.plot_curves = lambda *_: None
common.search.report.importances = lambda trials, names: {}
script = load_script(8)
run(script.main, script.Options, [*sys.argv[1:], "--device", "cpu"])
"""


def process_of(*options: str) -> subprocess.Popen:
    """A search in another process, which may be killed. Its stdout has stderr in it."""
    paths = os.pathsep.join(map(str, (Path(__file__).parent, Path(__file__).parents[1])))
    env = os.environ | {"PYTHONPATH": paths, "OMP_NUM_THREADS": "1"}
    output = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    return subprocess.Popen([sys.executable, "-c", IN_A_PROCESS, *options], env=env, **output)


@pytest.fixture(scope="module")
def small(text_file, tmp_path_factory) -> SimpleNamespace:
    """The search SMALL, made once: its folder and what it printed. Copy the folder to change it."""
    folder = tmp_path_factory.mktemp("small")
    with contextlib.chdir(folder), pytest.MonkeyPatch.context() as patch:
        patch.setattr("common.search.importance.SHUFFLES", 1)
        stdout = search(*SMALL, "--data", str(text_file), "--out", "s")
    return SimpleNamespace(folder=folder / "s", stdout=stdout)


@pytest.fixture(scope="module")
def one(text_file, tmp_path_factory) -> Path:
    """The folder of a search of one trial of 12 steps."""
    folder = tmp_path_factory.mktemp("one") / "s"
    search(*SMALL, *ONE, "--phases", "1x12", "--data", str(text_file), "--out", str(folder))
    return folder


def curves(folder: str | Path) -> dict:
    """What a search found: {(phase, trial): (values, state, [(step, loss), …])}."""
    made_from = json.loads(Path(folder, "search.json").read_text())
    phases = read_phases(made_from["phases"])
    space = {name: made_from[name] for name in NAMES if name in made_from}
    found = Search(Path(folder), phases, space, made_from["sampler"], 0)
    return {
        (k, t.user_attrs["number"]): (
            t.params, t.state, [(step, loss) for step, _, loss in t.user_attrs.get("curve", [])]
        )
        for k in range(len(phases)) for t in found.trials(k)
    }  # fmt: skip


def test_a_search_as_a_user_makes_it(small):
    stdout, folder = small.stdout, small.folder
    assert "32 steps in 3 phases: 5x4,2x8,1x12" in stdout
    line = r"^phase (\d)/3  trial +(\d+)  step +(\d+)  loss +([\d.]+)  best +([\d.–]+)  .* left$"
    lines = re.findall(line, stdout, re.M)
    assert len(lines) == 2 * 5 + 2 * 2 + 2  # evaluations
    ends = {}  # by trial: the last value of a phase
    for phase, trial, step, loss, best in lines:
        if int(step) == (4, 8, 12)[int(phase) - 1]:
            ends[trial] = float(loss)
        assert best == (f"{min(ends.values()):.4f}" if ends else "–")
    assert max(len(text) for text in stdout.splitlines() if text) <= 80
    found = curves(folder)
    assert sorted(k for k, _ in found) == [0] * 5 + [1] * 2 + [2]
    losses = {n: curve[-1][1] for (k, n), (_, _, curve) in found.items() if k == 0}
    promoted = sorted(losses, key=losses.get)[:2]
    assert sorted(n for k, n in found if k == 1) == sorted(promoted)
    for (k, n), (values, state, curve) in found.items():
        assert state == TrialState.COMPLETE and curve[-1][0] == (4, 8, 12)[k]
        if k:  # the same trial, its curve a continuation
            assert values == found[k - 1, n][0]
            assert curve[: len(found[k - 1, n][2])] == found[k - 1, n][2]
    files = {p.name for p in folder.iterdir() if not p.name.startswith(".")}
    saved = {int(path.parent.name) for path in folder.glob("trials/*/checkpoints")}
    assert saved == {n for k, n in found if k == 2}  # the others go no further
    assert files == {"search.json", "study.db", "trials", "lr.png", "curves.png",
                     "importance.png", "best.toml"}  # fmt: skip


def test_the_best_is_stage_7s_to_train(small, call, text_file, quick_peak, monkeypatch):
    only_train(monkeypatch)
    found = curves(small.folder)
    (winner,) = (n for k, n in found if k == 2)
    recipe = tomllib.loads((small.folder / "best.toml").read_text())
    values = found[2, winner][0]
    row = [f"{value:g}" for value in values.values()]
    table = small.stdout.split("the best, after 12 steps\n")[1].splitlines()
    assert table[0].split() == ["trial", "loss", "seconds", *values]
    assert table[1].split()[0] == str(winner) and table[1].split()[3:] == row
    title = table.index("importance, by 5 trials after 4 steps, for")
    assert len(table[title + 2].split()) == 4 and "chance alone reaches" in table[title + 4]
    assert recipe == {
        "model": f"{values['n_layer']}x1x16", "lr": values["lr"],
        "batch_size": values["batch_size"], "block_size": 16, "steps": 12, "warmup_steps": 10,
        "total_batch_tokens": 16 * values["batch_size"], "data": str(text_file), "seed": 1337,
    }  # fmt: skip
    code, stdout, stderr = call(7, "--recipe", str(small.folder / "best.toml"), "--compile", "no",
                                 "--steps", "10", "--out", "run")  # fmt: skip
    assert code == 0 and "best.toml" in stdout, stderr
    config = json.loads(Path("run/config.json").read_text())
    how = [config[name] for name in ("vocab_size", "optimizer", "weight_decay")]
    assert how == [50257, "adamw", 0.1]  # as the trials were trained


def test_a_trial_is_trained_as_by_hand(one, text_file):
    """Twelve steps: warm-up, then a constant lr; the clip; what decays. The same bits."""
    model = pad_vocab(init_weights(tie_weights(GPT(GPTConfig(1, 1, 16, 16))), 1337))
    optimizer = adamw(parameter_groups(model, 0.1), 1.0)
    tokens = load_tokens(str(text_file))
    batches, norms = Batches(tokens.train, 2, 16, seed=1337), []
    for lr in [1e-3 * n for n in range(1, 11)] + [1e-2] * 2:
        for group in optimizer.param_groups:
            group["lr"] = lr
        with autocast(CPU, autocast_dtype(CPU)):
            loss = model(*next(batches))[1]
        loss.backward()
        norms.append(torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0))
        optimizer.step()
        optimizer.zero_grad()
    assert max(norms) > 1
    weights = load_file(one / "trials/0000/checkpoints/step_00000012/model.safetensors")
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(weights[name], parameter, rtol=0, atol=0)
    with autocast(CPU, autocast_dtype(CPU)):
        val = torch.from_numpy(tokens.val[:100].astype("int64"))
        assert curves(one)[0, 0][2][-1] == (12, evaluate(model, val, 16).loss)


def test_promotion_equals_training_in_one_go(small, text_file):
    """The winner of three phases, and the same trial alone: the same weights bit for bit."""
    ((_, winner), (values, _, curve)) = max(curves(small.folder).items())
    words = [word for name, value in values.items()
             for word in (f"--{name.replace('_', '-')}", str(value))]  # fmt: skip
    data = ("--data", str(text_file), "--eval-tokens", "100")
    search(*words, *data, "--phases", "1x12", "--out", "alone")
    folders = [checkpoint.newest(Path(out, "trials", f"{n:04d}", "checkpoints"))
               for out, n in ((small.folder, winner), ("alone", 0))]  # fmt: skip
    weights = [load_file(folder / "model.safetensors") for folder in folders]
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])
    assert dict(curves("alone")[0, 0][2])[12] == dict(curve)[12]
    times = [seconds for _, seconds, _ in checkpoint.read(folders[0])["state"]["curve"]]
    assert len(times) == 6 and 0 < times[0] and times == sorted(set(times))  # of all three phases


@pytest.mark.parametrize("how", ["good", "other", "beyond", "damaged"])
def test_a_checkpoint_that_is_of_no_use_is_not_taken(one, how):
    """Damaged, of another trial, or beyond the phase: the trial starts again."""
    shutil.copytree(one / "trials/0000", how)
    if how == "damaged":
        Path(how, "checkpoints/step_00000012/model.safetensors").write_bytes(b"no")
    values = curves(one)[0, 0][0]
    model = build(config_of(values), Setting(vocab_multiple=128), 1)
    optimizer, scaler = adamw(parameter_groups(model, 0.1), 1.0), torch.amp.GradScaler("cpu")
    batches = SimpleNamespace(restore=lambda state: None)
    given = values | {"lr": 1e-3} if how == "other" else values
    phase = Phase(1, 0, 11 if how == "beyond" else 12)
    trial = Trial(0, 0, given, phase, Path(how), None, None)
    trial.restore(model, optimizer, scaler, batches, CPU)
    assert trial.step == (12 if how == "good" else 0)
    assert Path(how, "checkpoints").exists() == (how == "good") == bool(trial.curve)


def test_a_killed_search_resumes_to_the_same_end(small, text_file):
    options = (*SMALL, "--data", str(text_file), "--out", "killed")
    process = process_of(*options)
    for line in process.stdout:
        if line.startswith("phase 1/3  trial   2  step     2"):
            process.kill()
    assert process.wait() == -signal.SIGKILL
    before = curves("killed")
    assert [state for _, state, _ in before.values()].count(TrialState.RUNNING) == 1
    stdout = search(*options)
    assert stdout.startswith("device: ")
    assert not re.search(r"^trial [01]:.*\nphase 1", stdout, re.M)  # they are not trained again
    assert curves("killed") == curves(small.folder)
    stdout = search(*options)  # and once more: the table again
    assert "the best, after 12 steps" in stdout and "\ntrial " not in stdout


def test_ctrl_c_saves_the_trial_under_way(text_file, tmp_path):
    options = (*SMALL, "--phases", "2x4000,1x8000", "--data", str(text_file), "--out", "s")
    process = started(8, *options, cwd=tmp_path, until="trial 0")
    time.sleep(0.5)  # it is training
    process.send_signal(signal.SIGINT)
    stdout, stderr = process.communicate(timeout=30)
    assert process.returncode == 130 and "Traceback" not in stderr
    assert "the same command resumes the search" in stdout
    path = checkpoint.newest(tmp_path / "s/trials/0000/checkpoints")
    assert 0 < checkpoint.read(path)["state"]["step"] < 4000


def test_a_signal_before_the_first_step_and_while_waiting(call, text_file, monkeypatch):
    """A trial taken, nothing trained: the same command resumes. A waiting one stops, too."""
    options = (*SMALL, "--phases", "2x4,1x8", "--data", str(text_file), "--out", "s")
    newest = checkpoint.newest

    def signalled(folder):
        os.kill(os.getpid(), signal.SIGTERM)
        return newest(folder)

    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "newest", signalled)
        assert call(8, *options)[0] == 130
    assert call(8, *options)[0] == 0
    with monkeypatch.context() as patch:
        patch.setattr(Search, "phase", lambda self: 0)
        patch.setattr(Search, "take", lambda self: os.kill(os.getpid(), signal.SIGTERM))
        patch.setattr("time.sleep", lambda seconds: None)
        assert call(8, *options)[0] == 130


def test_two_processes_share_the_work(text_file):
    options = (*SMALL, "--phases", "8x6,1x8", "--data", str(text_file), "--out", "s")
    pair = [process_of(*options) for _ in range(2)]
    outputs = [process.communicate()[0] for process in pair]
    assert [process.returncode for process in pair] == [0, 0], outputs
    lines = [re.findall(r"^phase (\d)/2  trial +(\d+)  step +(\d+)", out, re.M) for out in outputs]
    assert len(lines[0] + lines[1]) == len({*lines[0], *lines[1]}) == 26  # none twice
    found = curves("s")
    assert len(found) == 9 and all(state == TrialState.COMPLETE for _, state, _ in found.values())


def test_two_processes_may_begin_it_at_once(call, one, text_file, monkeypatch):
    """The other one's files appear just when this one looks whether there are any."""
    iterdir = Path.iterdir

    def begun_meanwhile(folder):
        if folder == Path("s"):
            shutil.copytree(one, folder, dirs_exist_ok=True)
        return iterdir(folder)

    monkeypatch.setattr(Path, "iterdir", begun_meanwhile)
    options = (*SMALL, *ONE, "--phases", "1x12", "--data", str(text_file), "--out", "s")
    code, stdout = call(8, *options)[:2]
    assert code == 0 and "\ntrial " not in stdout


@pytest.mark.parametrize(
    ("why", "name", "bad"), [("loss nan at step", "lr", 1e30), ("out of memory", "n_layer", 2)]
)
def test_a_trial_that_fails_does_not_stop_the_study(text_file, monkeypatch, why, name, bad):
    """It diverges, or its model does not fit."""
    forward = GPT.forward

    def full(self, idx, targets=None):
        if name == "n_layer" and self.config.n_layer == bad:
            raise torch.OutOfMemoryError
        return forward(self, idx, targets)

    monkeypatch.setattr(GPT, "forward", full)
    lrs = ("--lr", "1e-3", "1e30" if name == "lr" else "1e-2")
    options = (*SMALL, *lrs, "--phases", "4x4,1x8", "--batch-size", "2", "--data", str(text_file))
    stdout = search(*options, "--out", "s")
    assert len(re.findall(rf"^trial \d failed: .*{why}", stdout, re.M)) == 2
    for values, state, _ in curves("s").values():
        assert state == (TrialState.FAIL if values[name] == bad else TrialState.COMPLETE)


def test_an_error_of_ours_keeps_its_traceback(text_file, monkeypatch):
    monkeypatch.setattr(GPT, "forward", lambda *_: exec("raise RuntimeError('shapes differ')"))
    with pytest.raises(RuntimeError, match="shapes differ"):
        search(*SMALL, "--phases", "4x4,1x8", "--data", str(text_file), "--out", "t")


# What is refused


@pytest.mark.parametrize(
    ("words", "options"),
    {
        "--phases 5": "--phases 5",
        "--lr is -1": "--lr 1e-3 -1",
        "--n-layer is 0": "--n-layer 0",
        "--batch-size is 0": "--batch-size 4 0",
        "a width of 96": "--n-embd 96",
        "a width of 64 and 5 heads": "--n-embd 64 --n-head 5",
        "the space has 2: widen the space": "--phases 3x4 --lr 1 2 --batch-size 2 --block-size 16 "
        "--n-embd 64 --n-layer 1",
        "--lr has no value": "--lr --n-embd 64",
        "--eval-tokens is 0": "--eval-tokens 0",
        "fewer than a batch": "--block-size 16 1000",
    }.items(),
)
def test_bad_options(refused, text_file, words, options):
    refused(words, 8, "--data", str(text_file), *options.split())
    assert not Path("runs").exists()


def test_without_scikit_learn_no_search_begins(refused, text_file, monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn", None)  # as if it were not installed
    refused("not installed: pip install scikit-learn", 8, *SMALL, "--data", str(text_file))
    assert not Path("runs").exists()


def test_a_folder_that_holds_something_else_is_left_alone(refused, text_file):
    Path("mine").mkdir()
    Path("mine/letter").write_text("mine")
    refused("holds something else", 8, *SMALL, "--data", str(text_file), "--out", "mine")
    assert [p.name for p in Path("mine").iterdir()] == ["letter"]


@pytest.fixture
def again(one, text_file) -> tuple:
    """The command of `one`, whose folder was copied to s."""
    shutil.copytree(one, "s")
    return (8, *SMALL, *ONE, "--phases", "1x12", "--data", str(text_file), "--out", "s")


def test_another_search_in_the_folder_is_refused(again, refused):
    refused("has n_layer [1], not [1, 2]", *again, "--n-layer", "1", "2")
    refused('has phases "1x12", not "1x13"', *again, "--phases", "1x13")
    refused("has storage false, not true", *again, "--storage", "s.log")
    Path("other.txt").write_text("One text is not another. " * 500)
    refused("has text", *again, "--data", "other.txt")


def test_a_damaged_search_json_is_refused(again, refused):
    Path("s/search.json").write_text("{")
    refused("s/search.json is damaged", *again)


@pytest.mark.parametrize(
    "damage",
    {
        "text": lambda good: b"no database " * 99,
        "random": lambda good: random.Random(0).randbytes(len(good)),
        "half": lambda good: good[: len(good) // 2],
        "hole": lambda good: good[:8192] + b"\xff" * 12288 + good[20480:],
        "folder": None,
    }.items(),
    ids=lambda damage: damage[0],
)
def test_a_damaged_study_is_refused(again, refused, damage):
    file, (_, change) = Path("s/study.db"), damage
    good = file.read_bytes()
    file.unlink()
    file.write_bytes(change(good)) if change else file.mkdir()
    refused("s/study.db can't be read or written", *again)


def test_the_default_space_has_what_the_docstring_says():
    options = load_script(8).Options()
    space = read_space(options)
    assert min(space["lr"]) == 1e-5 and max(space["lr"]) == 1e-1
    assert math.prod(map(len, space.values())) >= read_phases(options.phases)[0].trials
    assert "n_head" not in space
    assert config_of({"n_embd": 128, "n_layer": 1, "block_size": 32}).n_head == 2
