"""Stage 7: checkpoints are whole or absent, whatever happens while they are written."""

import os
import random
import resource
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from conftest import ROOT
from safetensors.torch import save_file

from common.init import tie_weights
from common.kit.cli import UserError
from common.kit.disk import check_room
from common.model import GPT, GPTConfig
from common.run import checkpoint
from common.run.ranks import Ranks

FILES = [f"{name}.safetensors" for name in checkpoint.TENSORS]
FILES += [f"{name}.json" for name in (*checkpoint.TEXTS, "manifest")]


SIZES = dict(n_layer=1, n_head=1, n_embd=8, block_size=8, vocab_size=12_000)


def contents(step: int) -> tuple[dict, dict]:
    """The tensors and texts of a checkpoint whose weights and moments all are the number of its
    step."""
    model = tie_weights(GPT(GPTConfig(**SIZES)))
    tensors = {"model": {}, "optimizer": {}, "random": {"0/cpu": torch.get_rng_state()}}
    for name, parameter in model.named_parameters():
        tensors["model"][name] = torch.full(parameter.shape, float(step))
        for key in checkpoint.ADAMW:
            shape = () if key == "step" else parameter.shape
            tensors["optimizer"][f"{name}/{key}"] = torch.full(shape, float(step))
    state = {"step": step, "data": {"epoch": 0, "position": step}, "scaler": {}}
    return tensors, {"state": state, "config": {"lr": step}, "model": SIZES}


def write(folder: Path, step: int, keep: int = 2) -> Path:
    return checkpoint.write(folder, step, *contents(step), keep)


@pytest.fixture(scope="module")
def two(tmp_path_factory) -> Path:
    """A folder with checkpoints of steps 10 and 20."""
    folder = tmp_path_factory.mktemp("checkpoints")
    write(folder, 10), write(folder, 20)
    return folder


def flip(data: bytes) -> bytes:
    middle = len(data) // 2
    return data[:middle] + bytes([data[middle] ^ 1]) + data[middle + 1 :]


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("how", ["flipped", "truncated", "missing"])
def test_a_damaged_checkpoint_is_skipped(two, capsys, name, how):
    folder = Path("copy")  # in the test's own folder
    shutil.copytree(two, folder)
    good, bad = folder / "step_00000010", folder / "step_00000020"
    data = (bad / name).read_bytes()
    (bad / name).unlink()
    if how != "missing":
        (bad / name).write_bytes(flip(data) if how == "flipped" else data[: len(data) // 2])
    assert checkpoint.newest(folder) == good
    out = capsys.readouterr().out
    assert f"{bad} is damaged, skipped" in out
    assert name in out or name == "manifest.json" and how == "flipped"  # a sum in it is wrong


def test_checkpoints_that_are_all_damaged_are_an_error(two):
    shutil.copytree(two, "copy")
    for path in Path("copy").iterdir():
        (path / "state.json").unlink()
    with pytest.raises(UserError, match="all 2 checkpoints"):
        checkpoint.newest(Path("copy"))


def test_no_checkpoint_is_no_error(tmp_path):
    assert checkpoint.newest(tmp_path) is None and checkpoint.newest(tmp_path / "absent") is None


def test_the_newest_is_the_one_of_the_last_step(two):
    """In the order of numbers, not of names: 100,000,000 is after 20."""
    shutil.copytree(two, "copy")
    os.rename("copy/step_00000010", "copy/step_100000000")
    assert checkpoint.newest(Path("copy")).name == "step_100000000"


def test_a_checkpoint_is_read_as_it_was_written(two):
    path = checkpoint.newest(two)
    texts = checkpoint.read(path)
    assert texts == contents(20)[1]
    assert sorted(p.name for p in path.iterdir()) == sorted(FILES)


def test_the_newest_ones_are_kept(tmp_path):
    for step in (5, 10, 15):
        write(tmp_path, step, keep=2)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["step_00000010", "step_00000015"]


def test_the_best_one_is_kept_too(tmp_path):
    for step in (5, 10, 15, 20):
        checkpoint.write(tmp_path, step, *contents(step), 1, best=tmp_path / "step_00000010")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["step_00000010", "step_00000020"]


def test_later_checkpoints_that_were_damaged_are_removed(tmp_path):
    """A run resumed from 10 because 15 is damaged: its next checkpoint is the newest."""
    write(tmp_path, 10), write(tmp_path, 15)
    (tmp_path / "step_00000015/state.json").unlink()
    write(tmp_path, 12, keep=1)
    assert [p.name for p in tmp_path.iterdir()] == ["step_00000012"]


def test_a_checkpoint_is_flushed_before_it_is_renamed(tmp_path, monkeypatch):
    """Its files, then its folder, then the rename, then the folder around it."""
    order, fsync, replace = [], os.fsync, os.replace

    def logged_fsync(descriptor):
        order.append(os.path.basename(os.readlink(f"/proc/self/fd/{descriptor}")))
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", logged_fsync)
    monkeypatch.setattr(os, "replace", lambda a, b: order.append("rename") or replace(a, b))
    write(tmp_path, 3)
    assert sorted(order[:7]) == sorted(FILES)
    assert order[7:] == [".step_00000003.partial", "rename", tmp_path.name]


def test_files_of_the_users_beside_the_checkpoints_stay(tmp_path):
    write(tmp_path, 1)
    shutil.copytree(tmp_path / "step_00000001", tmp_path / "step_best")
    (tmp_path / "step_notes.txt").write_text("mine")
    for step in (2, 3):
        write(tmp_path, step, keep=1)
    assert {p.name for p in tmp_path.iterdir()} == {"step_00000003", "step_best", "step_notes.txt"}
    assert checkpoint.newest(tmp_path).name == "step_00000003"


def test_files_that_will_be_overwritten_count_as_room(tmp_path, monkeypatch):
    (tmp_path / "old").write_bytes(bytes(10_000))
    usage = shutil._ntuple_diskusage(10**9, 10**9, 500)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    check_room(tmp_path, 10_500, "they")
    with pytest.raises(UserError, match="they need about"):
        check_room(tmp_path, 10_501, "they")


def test_a_full_disk_leaves_the_checkpoint_before(tmp_path):
    """The system refuses to write files beyond a size, as it does when a disk is full."""
    write(tmp_path, 1)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (300_000, hard))
    try:
        with pytest.raises(UserError, match="step_00000002 can't be written"):
            write(tmp_path, 2)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert [p.name for p in tmp_path.iterdir()] == ["step_00000001"]
    assert checkpoint.newest(tmp_path).name == "step_00000001"


def test_a_kill_at_any_moment_leaves_a_whole_checkpoint(tmp_path):
    """One process imports torch and then, 20 times, forks a child that writes checkpoints as fast
    as it can and is killed at a random moment."""
    code = f"""
import os, random, signal, sys, time
os.environ["OMP_NUM_THREADS"] = "1"  # a forked child has no other threads
sys.path[:0] = [{str(ROOT)!r}, {str(ROOT / "tests")!r}]
from pathlib import Path
from test_7_checkpoint import checkpoint, write
folder = Path("c")
write(folder, 1)
random.seed({random.randrange(10**9)})
for trial in range(20):
    child = os.fork()
    if child == 0:
        for step in range(2, 10**6):
            write(folder, step)
    time.sleep(random.uniform(0.01, 0.12))
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    print(*sorted(p.name for p in folder.iterdir()), flush=True)
    path = checkpoint.newest(folder)
    assert checkpoint.read(path)["state"]["step"] == int(path.name[5:])
    write(folder, 1)  # what a kill left is cleared away
    assert [p.name for p in folder.iterdir()] == ["step_00000001"]
"""
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    found = done.stdout.splitlines()
    assert sum(".step" in line for line in found) >= 1, found  # killed while it was writing
    assert "damaged" not in done.stdout


def test_the_generator_is_that_of_the_ranks_own_gpu(monkeypatch, tmp_path):
    asked = []

    class Gpus:
        get_rng_state = staticmethod(lambda device: asked.append(device) or torch.ones(8))
        set_rng_state = staticmethod(lambda state, device: asked.append(device))

    monkeypatch.setattr(torch, "get_device_module", lambda device: Gpus)
    device, nothing = torch.device("cuda:1"), torch.nn.Module()
    for name, tensors in checkpoint.collect(nothing, None, Ranks(device)).items():
        save_file(tensors, tmp_path / f"{name}.safetensors")
    assert checkpoint.restore(tmp_path, nothing, None, Ranks(device))
    assert asked == [device, device]


@pytest.mark.parametrize("umask", [0o022, 0o077])
def test_the_umask_decides_who_may_read(tmp_path, umask):
    before = os.umask(umask)
    try:
        path = write(tmp_path, 10)
    finally:
        os.umask(before)
    assert {file.stat().st_mode & 0o777 for file in path.iterdir()} == {0o666 & ~umask}


def test_a_checkpoint_that_nobody_may_read_is_not_damaged(two, monkeypatch):
    """It must not be removed later. (A test may run as root, who may read everything.)"""
    real, secret = Path.open, two / "step_00000020" / "optimizer.safetensors"

    def refuse(path, *args, **kwargs):
        if path == secret:
            raise PermissionError(13, "Permission denied", str(path))
        return real(path, *args, **kwargs)

    monkeypatch.setattr(Path, "open", refuse)
    with pytest.raises(PermissionError):
        checkpoint.newest(two)


def test_a_smaller_tensor_is_not_broadcast():
    model = tie_weights(GPT(GPTConfig(1, 1, 8, 8, 50)))
    with pytest.raises(AssertionError):
        Ranks(torch.device("cpu")).fill(model.transformer.wpe.weight, torch.zeros(1, 8))
