"""Stage 7: a run that is stopped, killed or damaged goes on as if it had never stopped."""

import fcntl
import gc
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from conftest import SCRIPTS, started
from helpers import (
    TINY,
    assert_same_run,
    checkpoints,
    copy_as_killed,
    finished_run,
    losses,
    neither_sample_nor_plot,
    one_thread,
    only_train,
    state,
    val_losses,
)
from test_7_checkpoint import flip

from common.evals import Evaluation
from common.run import checkpoint
from common.run.log import LongRunLog
from common.run.ranks import Ranks
from common.run.resume import Run
from common.run.signals import StopSignal
from common.speed import Setting


@pytest.fixture(autouse=True)
def one(quick_peak):
    with one_thread():
        yield


@pytest.fixture
def short(monkeypatch):
    only_train(monkeypatch)


@pytest.fixture(scope="module")
def options(text_file) -> tuple[str, ...]:
    return (*TINY, "--data", str(text_file), "--steps", "8", "--checkpoint-every", "4")


@pytest.fixture(scope="module")
def whole(options, tmp_path_factory) -> Path:
    """A run of 8 steps, with checkpoints of steps 4 and 8."""
    return finished_run(tmp_path_factory.mktemp("whole") / "run", *options)


@pytest.fixture
def killed(whole) -> Path:
    """A copy of it, as a kill between steps 4 and 8 would have left it."""
    return copy_as_killed(whole, Path("run"))


def files(folder: Path) -> dict[Path, tuple]:
    """All that is in a folder, with its time, to see whether anything was touched."""
    paths = [path for path in folder.rglob("*") if path.is_file() and path.name != ".lock"]
    return {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in paths}


# Resume


def test_a_run_that_is_stopped_and_resumed_is_the_same_run(call, text_file, monkeypatch):
    """26 steps of 4 windows, of 67 an epoch, stopped at 13 in the middle of the first; with dropout
    and samples, and an export at each end."""
    monkeypatch.setattr(LongRunLog, "plot", lambda log: None)
    Path("short.txt").write_text(text_file.read_text()[:2000])
    options = (*TINY, "--data", "short.txt", "--steps", "26", "--eval-every", "7",
               "--dropout", "0.2", "--seed", "3")  # fmt: skip
    assert call(7, *options, "--out", "one")[0] == 0
    assert call(7, *options, "--out", "two", "--stop-at", "13")[0] == 0
    assert state(Path("two"))["data"]["epoch"] == 0
    torch.manual_seed(99)
    code, stdout, _ = call(7, "--out", "two", "--resume")
    assert code == 0 and "resumed from two/checkpoints/step_00000013" in stdout
    assert_same_run(Path("one"), Path("two"))
    assert list(losses(Path("two"))) == [*range(26)]
    assert list(val_losses(Path("two"))) == [0, 7, 14, 21, 26]
    assert state(Path("one"))["data"]["epoch"] == 1 and state(Path("one"))["data"]["position"] > 0


def test_a_killed_run_is_resumed_from_its_last_checkpoint(call, whole, killed, short):
    code, stdout, _ = call(7, "--out", "run", "--resume")
    assert code == 0 and "resumed from run/checkpoints/step_00000004" in stdout
    assert "steps 4 to 8 of 8" in stdout
    assert_same_run(whole, killed)


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_a_run_with_a_gradient_scaler_is_resumed(call, text_file, short, optimizer):
    options = (*TINY, "--data", str(text_file), "--dtype", "float16", "--checkpoint-every", "3",
               "--optimizer", optimizer)  # fmt: skip
    assert call(7, *options, "--steps", "6", "--out", "one")[0] == 0
    assert state(Path("one"))["scaler"]["_growth_tracker"] > 3
    copy_as_killed(Path("one"), Path("two"))
    assert call(7, "--out", "two", "--resume")[0] == 0
    assert_same_run(Path("one"), Path("two"))


def test_a_compiled_run_with_dropout_is_resumed(call, text_file, monkeypatch, short):
    """Two threads: a compiled step must add up in one order. bf16 where the CPU has it."""
    torch.set_num_threads(2)
    monkeypatch.setattr("torch._inductor.config.compile_threads", 1)  # a pool takes seconds
    options = (*TINY, "--data", str(text_file), "--compile", "yes", "--dropout", "0.1",
               "--block-size", "32", "--total-batch-tokens", "64", "--steps", "8",
               "--checkpoint-every", "4")  # fmt: skip
    if torch.cpu.get_capabilities().get("avx512_bf16"):
        options += ("--dtype", "bfloat16")
    code, _, stderr = call(7, *options, "--out", "one")
    assert code == 0, stderr
    copy_as_killed(Path("one"), Path("two"))
    torch._dynamo.reset()  # as in a new process
    assert call(7, "--out", "two", "--resume")[0] == 0
    assert_same_run(Path("one"), Path("two"))


def test_a_damaged_checkpoint_is_skipped(call, options, whole, short):
    shutil.copytree(whole, "run")
    path = Path("run/checkpoints/step_00000008/optimizer.safetensors")
    path.write_bytes(flip(path.read_bytes()))
    code, stdout, _ = call(7, "--out", "run", "--resume")
    assert code == 0 and "optimizer.safetensors is not what was written" in stdout
    assert "resumed from run/checkpoints/step_00000004" in stdout
    assert_same_run(whole, Path("run"))


def test_a_run_killed_before_its_first_checkpoint_starts_again(call, whole, killed, short):
    shutil.rmtree("run/checkpoints")
    code, stdout, _ = call(7, "--out", "run", "--resume")
    assert code == 0 and "no checkpoint yet: starting at step 0" in stdout
    assert_same_run(whole, killed)


def test_a_log_that_a_crash_damaged_is_mended(call, whole, killed, short):
    lines = Path("run/metrics.csv").read_text().splitlines(keepends=True)
    cut = next(i for i, line in enumerate(lines) if line.startswith("4,"))
    damage = b"3,9.9\n\0\x80\0"
    Path("run/metrics.csv").write_bytes("".join(lines[:cut]).encode() + damage)
    assert call(7, "--out", "run", "--resume")[0] == 0
    assert_same_run(whole, killed)


def test_a_damaged_config_before_the_first_checkpoint_is_one_line(refused, killed):
    shutil.rmtree("run/checkpoints")
    Path("run/config.json").write_text("")
    refused("config.json is damaged", 7, "--out", "run", "--resume")


def test_a_run_of_another_version_is_refused(refused, killed):
    shutil.rmtree("run/checkpoints")
    saved = json.loads(Path("run/config.json").read_text())
    Path("run/config.json").write_text(json.dumps(saved | {"old": 1}))
    refused("has options of another version, old: start another", 7, "--out", "run", "--resume")


def test_a_finished_run_is_resumed_to_its_end_alone(call, whole, short):
    """Nothing is trained again; with more steps the run goes on."""
    shutil.copytree(whole, "run")
    assert call(7, "--out", "run", "--resume")[0] == 0
    assert_same_run(whole, Path("run"))
    assert call(7, "--out", "run", "--resume", "--stop-at", "9", "--lr-floor", "0.1")[0] == 0
    assert list(losses(Path("run"))) == [*range(9)]


def test_a_run_does_not_go_back_to_an_earlier_step(refused, whole):
    shutil.copytree(whole, "run")
    before = files(Path("run"))
    refused("at step 8: give a larger --stop-at", 7, "--out", "run", "--resume", "--stop-at", "7")
    assert files(Path("run")) == before


def test_another_text_is_another_run(call, refused, text_file, short):
    text = text_file.read_text()
    Path("t.txt").write_text(text)
    options = (*TINY, "--data", "t.txt", "--steps", "3", "--stop-at", "2", "--out", "run")
    assert call(7, *options)[0] == 0
    Path("t.txt").write_text("Another beginning. " + text)
    before = files(Path("run"))
    refused("the run began with a text of", 7, "--out", "run", "--resume", "--steps", "4")
    assert files(Path("run")) == before
    Path("moved.txt").write_text(text)
    assert call(7, "--out", "run", "--resume", "--data", "moved.txt")[0] == 0


def test_an_export_that_fails_is_made_again_by_resume(call, refused, text_file, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    neither_sample_nor_plot(monkeypatch)
    options = (*TINY, "--data", str(text_file), "--steps", "2", "--out", "run")
    with monkeypatch.context() as patch:
        patch.setattr("common.pretrained._write", full)
        refused("hf can't be written", 7, *options)
    assert checkpoints(Path("run")) == ["step_00000002"]
    Path("run/.hf.old.partial/x").mkdir(parents=True)  # as a kill leaves it
    gc.collect()  # frees the failed run and its lock, which Python 3.13 does not do at once
    assert call(7, "--out", "run", "--resume")[0] == 0
    assert Path("run/hf/model.safetensors").exists() and not Path("run/.hf.old.partial").exists()


def test_the_log_is_on_the_disk_before_a_checkpoint_is(call, options, monkeypatch, short):
    """Else a power cut could leave a checkpoint of steps that are not in the log."""
    order, fsync, replace = [], os.fsync, os.replace

    def fsync_and_note(descriptor):
        order.append(os.path.basename(os.readlink(f"/proc/self/fd/{descriptor}")))
        fsync(descriptor)

    def replace_and_note(old, new):
        order.append(Path(new).name)
        replace(old, new)

    monkeypatch.setattr(os, "fsync", fsync_and_note)
    monkeypatch.setattr(os, "replace", replace_and_note)
    assert call(7, *options, "--out", "run")[0] == 0
    for name in ("step_00000004", "step_00000008"):
        before = order[: order.index(name)]
        assert "metrics.csv" in before
        del order[: order.index(name)]


# Signals


def test_ctrl_c_stops_after_the_step_with_a_checkpoint(text_file, tmp_path):
    """A real process. It leaves metrics.png, too, but no export."""
    options = (*TINY, "--data", str(text_file), "--steps", "100000", "--out", "run")
    process = started(7, *options, cwd=tmp_path, until="step    5")
    process.send_signal(signal.SIGINT)
    stdout, stderr = process.communicate(timeout=60)
    assert process.returncode == 0 and "Traceback" not in stderr, stderr
    assert "finishing this step" in stderr and "--resume continues the run" in stdout
    folder = tmp_path / "run"
    path = max((folder / "checkpoints").iterdir())
    assert checkpoint.why_damaged(path) is None
    assert checkpoint.read(path)["state"]["step"] == len(losses(folder))
    assert (folder / "metrics.png").exists() and not (folder / "hf").exists()


def test_the_residual_stream_is_as_narrow_in_every_kind_of_run(call, options, monkeypatch):
    """New, resumed, and from another's weights: as on a GPU."""
    made, model = [], Run.model
    monkeypatch.setattr(Run, "model", lambda run, *how: made.append(model(run, *how)) or made[-1])
    narrow = Setting(dtype=torch.bfloat16, residual=True)
    monkeypatch.setattr("common.speed.setting_of", lambda *names: narrow)
    vocabulary = ("--vocab-size", "512")
    for how in (
        (*options, *vocabulary, "--out", "one", "--stop-at", "4"),
        ("--resume", "--out", "one"),
        (*options[2:], *vocabulary, "--init-from", "one/hf", "--out", "two"),
    ):
        code, _, stderr = call(7, *how)
        assert code == 0, stderr
    assert [len(model.transformer.h[0]._forward_pre_hooks) for model in made] == [1, 1, 1]


def test_ctrl_c_while_a_step_compiles_is_one_line(text_file, tmp_path):
    """A terminal sends it to the compiler, too, here one that takes its time, and it dies of it."""
    compiler = tmp_path / "compiler"
    compiler.write_text(
        """#!/bin/sh
case "$*" in *main.cpp*) ;; *) exec g++ "$@";; esac
cd """
        + f"{tmp_path} && mkdir -p compiling && [ ! -e killed ] && exec sleep 100\n"
    )
    compiler.chmod(0o755)
    env = {"CXX": compiler, "TORCHINDUCTOR_CACHE_DIR": tmp_path / "cache", "OMP_NUM_THREADS": "1",
           "TORCHINDUCTOR_CPP_CACHE_PRECOMPILE_HEADERS": "0"}  # fmt: skip
    options = (*TINY, "--data", str(text_file), "--steps", "9", "--compile", "yes", "--out", "run")
    process = subprocess.Popen(
        [sys.executable, str(SCRIPTS[7]), *options], cwd=tmp_path, env=os.environ | env, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )  # fmt: skip
    end = time.time() + 100
    while not (tmp_path / "compiling").exists() and process.poll() is None:
        assert time.time() < end
        time.sleep(0.05)
    (tmp_path / "killed").touch()  # a compiler that is called again ends at once
    os.killpg(process.pid, signal.SIGINT)
    stdout, stderr = process.communicate(timeout=60)
    assert process.returncode == 130, stderr
    said = [line for line in stderr.splitlines() if line]
    assert said == ["SIGINT: finishing this step; Ctrl-C again ends at once", "stopped by Ctrl-C"]
    assert stdout.count("the first step compiles") == 1 and "--compile no" in stdout


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_stopped_run_is_resumed(call, options, whole, monkeypatch, short, number):
    row = LongRunLog.row

    def row_and_signal(log, step, **values):
        row(log, step, **values)
        if step == 1:
            os.kill(os.getpid(), number)  # noticed in step 2

    with monkeypatch.context() as patch:
        patch.setattr(LongRunLog, "row", row_and_signal)
        code, stdout, _ = call(7, *options, "--out", "run")
    assert code == 0 and "stopped after step 2: --resume continues the run" in stdout
    assert checkpoints(Path("run")) == ["step_00000003"]
    assert list(val_losses(Path("run"))) == [0] and not Path("run/exported.safetensors").exists()
    assert call(7, "--out", "run", "--resume")[0] == 0
    assert_same_run(whole, Path("run"))


def test_a_second_ctrl_c_ends_at_once(call, options, monkeypatch, short):
    """In a step of 100 micro-batches: the first lets them go on, the second does not."""
    seen, exchanging = [], Ranks.exchanging

    def exchanging_and_signal(ranks, loss_of, now):
        seen.append(now)
        if len(seen) in (3, 6):
            os.kill(os.getpid(), signal.SIGINT)
        return exchanging(ranks, loss_of, now)

    monkeypatch.setattr(Ranks, "exchanging", exchanging_and_signal)
    monkeypatch.setattr("common.run.signals.SECONDS_APART", 0)
    code, _, stderr = call(7, *options, "--total-batch-tokens", "1600", "--out", "run")
    assert code == 130 and "stopped by Ctrl-C" in stderr
    assert len(seen) == 6 and not Path("run/checkpoints").exists()


def test_a_ctrl_c_that_torchrun_passes_on_is_not_a_second_one(monkeypatch):
    """Its ranks have had it from the terminal a moment before."""
    monkeypatch.setattr("common.run.signals.SECONDS_APART", 60)
    with StopSignal() as stop:
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)
        assert stop.asked
        monkeypatch.setattr("common.run.signals.SECONDS_APART", 0)
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(1)


def test_signals_are_as_before_after_a_run():
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    with StopSignal() as stop:
        os.kill(os.getpid(), signal.SIGTERM)
        assert stop.asked
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == before


def test_the_best_checkpoint_stays(call, options, monkeypatch):
    """The validation loss is lowest at step 2, which has no checkpoint, and then at step 4."""
    losses = iter([3.0, 0.5, 2.0, 2.5, 2.6, 2.7, 2.8])

    def evaluation(*_) -> Evaluation:
        return Evaluation(next(losses), 1, 1)

    monkeypatch.setattr("common.run.evals.evaluation", evaluation)
    often = ("--steps", "12", "--eval-every", "2", "--keep", "1")
    code, stdout, stderr = call(7, *options, *often, "--out", "run")
    assert code == 0, stderr
    assert "the lowest validation loss was 0.5000, at step 2\n" in stdout
    assert "the best checkpoint is run/checkpoints/step_00000004\n" in stdout
    names = [path.name for path in sorted(Path("run/checkpoints").iterdir())]
    assert names == ["step_00000004", "step_00000012"]


def test_a_resumed_run_says_what_changed(call, options):
    assert call(7, *options, "--stop-at", "4", "--out", "run")[0] == 0
    resumed = ("--out", "run", "--resume", "--stop-at", "5")
    assert "changed: " not in call(7, *resumed)[1]
    stdout = call(7, *resumed, "--steps", "9", "--lr", "2e-2", "--stop-at", "6")[1]
    assert "\nchanged: steps 8 → 9, lr 0.01 → 0.02\n" in stdout


def test_what_changed_stays_even_if_the_run_is_killed(call, options, monkeypatch, short):
    """Before its next checkpoint: the options are those of the last command."""
    assert call(7, *options, "--stop-at", "4", "--out", "run")[0] == 0
    with monkeypatch.context() as patch:
        patch.setattr(Run, "save", lambda *_: None)  # as if the end never came
        call(7, "--out", "run", "--resume", "--lr", "2e-2", "--stop-at", "5")
    stdout = call(7, "--out", "run", "--resume", "--stop-at", "5")[1]
    assert "resumed from run/checkpoints/step_00000004" in stdout
    assert "lr=0.02" in stdout and "changed: " not in stdout


# Folders


def test_a_run_that_began_and_ended_meanwhile_is_not_touched(refused, options, monkeypatch):
    """Another process took the folder after this one had looked, and before it began."""
    make = Run.model

    def model(self, *how):
        self.folder.mkdir()
        (self.folder / "config.json").write_text("the other's")
        return make(self, *how)

    monkeypatch.setattr(Run, "model", model)
    refused("holds a run", 7, *options, "--out", "run")
    assert Path("run/config.json").read_text() == "the other's"


def test_an_existing_folder_without_a_run_is_not_touched(refused, options):
    Path("run").mkdir()
    Path("run/mine.txt").write_text("mine")
    for how in ((), ("--resume",), ("--restart",)):
        refused("holds no run", 7, *options, "--out", "run", *how)
    assert [path.name for path in Path("run").iterdir()] == ["mine.txt"]
    refused("holds no run", 7, "--out", "nowhere", "--resume")
    assert not Path("nowhere").exists()
    Path("file").write_text("mine")
    refused("holds no run", 7, *options, "--out", "file")
    assert Path("file").read_text() == "mine"


def test_a_folder_with_a_run_is_not_overwritten(refused, options, killed):
    before = files(killed)
    refused("--resume continues it, --restart deletes it", 7, *options, "--out", "run")
    assert files(killed) == before


def test_restart_begins_anew(call, text_file, options, whole, short):
    """All that the run wrote goes; what is not its own stays."""
    shutil.copytree(whole, "run")
    Path("run/hf").mkdir()
    Path("run/hf/old").write_text("old")
    Path("run/notes.txt").write_text("mine")
    code, stdout, stderr = call(7, *options, "--seed", "2", "--stop-at", "4", "--out", "run",
                                "--restart")  # fmt: skip
    assert code == 0 and "steps 0 to 4 of 8" in stdout, stderr
    assert {p.name for p in Path("run").iterdir()} == {
        "config.json", "metrics.csv", "checkpoints", "notes.txt", ".lock", "exported.safetensors"
    }  # fmt: skip
    assert json.loads(Path("run/config.json").read_text())["seed"] == 2
    assert call(7, *options, "--seed", "2", "--stop-at", "4", "--out", "new")[0] == 0
    assert_same_run(Path("new"), Path("run"))
    assert checkpoints(Path("run")) == ["step_00000004"]


@pytest.mark.parametrize("mistake", [("--lr", "-1"), ("--data", "gone.txt"), ("--steps", "x")])
def test_restart_with_a_mistake_deletes_nothing(call, options, killed, mistake):
    before = files(killed)
    code, _, stderr = call(7, *options, "--out", "run", "--restart", *mistake)
    assert code == 2 and stderr.startswith("error: ") and stderr.count("\n") == 1
    assert files(killed) == before


def test_a_restart_that_is_killed_can_be_made_again(call, options, whole, monkeypatch, short):
    """While it deletes, the folder still is one with a run."""
    shutil.copytree(whole, "run")
    for name in ("checkpoints", "metrics.csv"):
        remove = (shutil, "rmtree") if name == "checkpoints" else (Path, "unlink")
        real = getattr(*remove)

        def killed(path, *args, name=name, real=real, **kwargs):
            if path == Path("run", name):
                raise KeyboardInterrupt
            return real(path, *args, **kwargs)

        with monkeypatch.context() as patch:
            patch.setattr(*remove, killed)
            assert call(7, *options, "--out", "run", "--restart")[0] == 130
    assert call(7, *options, "--out", "run", "--restart")[0] == 0
    assert_same_run(whole, Path("run"))


@pytest.mark.parametrize("how", [("--resume",), ("--restart",), ()])
def test_a_folder_in_use_is_refused_before_it_is_read(refused, options, killed, monkeypatch, how):
    """Another process may be writing a checkpoint: none is chosen, and nothing is touched."""
    monkeypatch.setattr(checkpoint, "newest", lambda folder: 1 / 0)
    before = files(killed)
    with open("run/.lock", "a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        words = "another process trains in run" if how else "holds a run"
        refused(words, 7, *options, "--out", "run", *how)
    assert files(killed) == before


def test_a_run_holds_its_lock_until_its_end(call, options, monkeypatch, short):
    row, held = LongRunLog.row, []

    def row_and_try(log, step, **values):
        row(log, step, **values)
        with open("run/.lock", "a") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                held.append(step)

    monkeypatch.setattr(LongRunLog, "row", row_and_try)
    assert call(7, *options, "--out", "run", "--stop-at", "2")[0] == 0
    assert call(7, "--out", "run", "--resume", "--stop-at", "4")[0] == 0
    assert held == [0, 1, 2, 3]
