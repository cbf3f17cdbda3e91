"""Stage 7: whatever is in place of a run's files gives one line and exit code 2, or, where the sums
say that a checkpoint is damaged, the checkpoint before. Nothing is filled, nothing is removed."""

import gc
import hashlib
import json
import os
import shutil
import sys
from pathlib import Path

import odd
import pytest
import torch
from conftest import load_script
from helpers import TINY, finished_run, one_thread, only_train
from hypothesis import given
from hypothesis import strategies as st
from odd import and_hostile, some
from safetensors.torch import load_file, save_file

from common import pretrained
from common.init import tie_weights
from common.kit.cli import run
from common.model import GPT, GPTConfig
from common.run import checkpoint
from common.run.ranks import Ranks

NEWEST = Path("run/checkpoints/step_00000004")
BEFORE = Path("run/checkpoints/step_00000002")


@pytest.fixture(autouse=True)
def short(monkeypatch, quick_peak):
    only_train(monkeypatch)
    with one_thread():
        yield


@pytest.fixture(scope="module")
def options(text_file) -> tuple[str, ...]:
    return (*TINY, "--data", str(text_file), "--steps", "6", "--checkpoint-every", "2",
            "--dtype", "float16", "--keep", "2")  # fmt: skip


@pytest.fixture(scope="module")
def whole(options, tmp_path_factory) -> Path:
    """A run that was stopped at step 4, with checkpoints of steps 2 and 4, and a scaler."""
    return finished_run(tmp_path_factory.mktemp("whole") / "run", *options, "--stop-at", "4")


@pytest.fixture
def copy(whole) -> Path:
    return shutil.copytree(whole, "run")


@pytest.fixture
def resume(capsys, monkeypatch):
    """resume(*options) → (exit code, stdout, stderr): all of it but the training."""
    script = load_script(7)

    def train(model, batches, val, log, options, setting, run, stop):
        optimizer = torch.optim.AdamW(model.parameters())
        scaler = torch.amp.GradScaler("cpu", enabled=setting.dtype is torch.float16)
        run.restore(model, optimizer, scaler, batches)

    monkeypatch.setattr(script, "train", train)

    def resume(*options: str):
        code, how = 0, options or ("--resume",)
        try:
            run(script.main, script.Options, [*how, "--out", "run", "--device", "cpu"])
        except SystemExit as stop:
            code = stop.code
        gc.collect()  # the run, whose lock its error may still hold
        return code, *capsys.readouterr()

    gc.freeze()  # what is there now need not be searched again and again
    yield resume
    gc.unfreeze()


def sign(folder: Path) -> None:
    """Give a checkpoint the manifest of what it holds."""
    paths = [path for path in sorted(folder.iterdir()) if path.name != "manifest.json"]
    sums = {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in paths}
    (folder / "manifest.json").write_text(json.dumps(sums))


def assert_one_line(found: tuple, *words: str) -> None:
    code, _, stderr = found
    assert code == 2 and stderr.startswith("error: ") and stderr.count("\n") == 1, found
    assert all(word in stderr for word in words), stderr


@pytest.mark.parametrize("name", checkpoint.TEXTS)
@some(20)
@given(content=odd.FILES)
@and_hostile
def test_an_odd_file_with_its_right_sum_is_one_line(copy, resume, name, content):
    (NEWEST / f"{name}.json").write_bytes(content)
    sign(NEWEST)
    assert_one_line(resume(), "damaged")


@some(20)
@given(content=odd.FILES)
@and_hostile
def test_with_an_odd_manifest_the_checkpoint_before_is_resumed(copy, resume, content):
    (NEWEST / "manifest.json").write_bytes(content)
    code, stdout, stderr = resume()
    assert code == 0 and f"resumed from {BEFORE}" in stdout, stderr


@some(20)
@given(content=odd.FILES)
@and_hostile
def test_an_odd_config_before_the_first_checkpoint_is_one_line(copy, resume, content):
    shutil.rmtree("run/checkpoints", ignore_errors=True)
    Path("run/config.json").write_bytes(content)
    assert_one_line(resume(), "config.json is damaged")


@pytest.mark.parametrize("name", checkpoint.TEXTS)
@some(50)
@given(data=st.data())
def test_an_odd_field_is_one_line_or_no_matter(copy, whole, resume, name, data):
    """A few values may be (inf is a clip), a missing field never."""
    path = NEWEST / f"{name}.json"
    valid = json.loads((whole / path.relative_to("run")).read_text())
    changed, missing = odd.with_odd_field(data, valid)
    path.write_text(json.dumps(changed))
    sign(NEWEST)
    code, _, stderr = found = resume()
    if code or missing:
        assert_one_line(found)
    assert code in (0, 2) and (code or not stderr)


def other_weights(folder: Path, change) -> None:
    for name in ("model", "optimizer"):
        tensors = load_file(folder / f"{name}.safetensors")
        save_file(change(tensors), folder / f"{name}.safetensors")
    sign(folder)


def renamed(tensors):
    return {name.replace("ln_f", "ln_g"): tensor for name, tensor in tensors.items()}


def one_row(tensors):
    return {k: v[:1].clone() if v.dim() == 2 else v for k, v in tensors.items()}


def half(tensors):
    return {name: tensor.half() for name, tensor in tensors.items()}


def fewer(tensors):
    return {k: v for k, v in tensors.items() if "wpe" not in k}


@pytest.mark.parametrize("change", [renamed, one_row, half, fewer, lambda tensors: {}])
def test_tensors_of_another_model_are_one_line(copy, resume, change):
    """Weights of shape (1, n) would be broadcast. The sums are right."""
    other_weights(NEWEST, change)
    assert_one_line(resume(), "model.safetensors is damaged")


@pytest.mark.parametrize("state", [
    torch.zeros(3, dtype=torch.uint8), torch.zeros(5056, dtype=torch.uint8), torch.zeros(5056),
])  # fmt: skip
def test_a_wrong_random_generator_is_one_line(copy, resume, state):
    save_file({"0/cpu": state}, NEWEST / "random.safetensors")
    sign(NEWEST)
    assert_one_line(resume(), "is damaged")


@pytest.mark.parametrize("name", checkpoint.TENSORS)
def test_what_is_no_safetensors_is_one_line(copy, resume, name):
    (NEWEST / f"{name}.safetensors").write_bytes(b"\xff" * 50)
    sign(NEWEST)
    assert_one_line(resume(), "is damaged")


def test_a_smaller_tensor_is_not_broadcast():
    """On its way to the ranks, once more."""
    model = tie_weights(GPT(GPTConfig(1, 1, 8, 8, 50)))
    with pytest.raises(AssertionError):
        Ranks(torch.device("cpu")).fill(model.transformer.wpe.weight, torch.zeros(1, 8))


# What is no file, or no folder


def as_file(path):
    path.write_text("mine")


def as_link(path):
    path.symlink_to("nowhere")


def as_loop(path):
    path.symlink_to(path.name)


def as_folder(path):
    path.mkdir()


@pytest.mark.parametrize("make", [as_file, as_link, as_loop, as_folder, os.mkfifo])
def test_a_checkpoints_name_that_is_taken_is_skipped(copy, call, make):
    """And never removed, but for a folder. The run goes on from the one before."""
    shutil.rmtree(NEWEST)
    make(NEWEST)
    code, stdout, stderr = call(7, "--out", "run", "--resume", "--stop-at", "3")
    assert code == 0 and f"resumed from {BEFORE}" in stdout, stderr
    assert f"{NEWEST} is damaged, skipped" in stdout
    assert os.path.lexists(NEWEST) == (make != as_folder)
    if make != as_folder:
        code, stdout, stderr = call(7, "--out", "run", "--resume", "--stop-at", "4")
        assert_one_line((code, stdout, stderr), f"{NEWEST} can't be written", "in its place")
        assert os.path.lexists(NEWEST)


def test_a_checkpoint_behind_a_link_is_resumed_and_stays(copy, call):
    for path in (NEWEST, BEFORE):
        path.rename(path.name)
        path.symlink_to(Path(path.name).absolute())
    code, stdout, stderr = call(7, "--out", "run", "--resume", "--stop-at", "5", "--keep", "1")
    assert code == 0 and f"resumed from {NEWEST}" in stdout, stderr
    assert NEWEST.is_dir() and Path(NEWEST.name).is_dir() and BEFORE.is_dir()


@pytest.mark.parametrize("name", ["manifest.json", "state.json", "model.safetensors"])
def test_a_fifo_in_a_checkpoint_does_not_hang(copy, resume, name):
    (NEWEST / name).unlink()
    os.mkfifo(NEWEST / name)
    code, stdout, _ = resume()
    assert code == 0 and f"resumed from {BEFORE}" in stdout


def test_a_fifo_as_config_or_recipe_does_not_hang(copy, resume, options):
    os.mkfifo("pipe")
    shutil.rmtree("run/checkpoints")
    os.replace("pipe", "run/config.json")
    assert_one_line(resume(), "config.json: Not a file")
    os.mkfifo("pipe.toml")
    assert_one_line(resume("--recipe", "pipe.toml", "--restart"), "no TOML file")


def test_a_checkpoint_that_nobody_may_read_is_not_damaged(copy, resume, monkeypatch):
    """The run ends, not to remove it later. (A test may run as root, who may read everything.)"""
    real, secret = Path.open, NEWEST / "optimizer.safetensors"

    def refuse(path, *args, **kwargs):
        if path == secret:
            raise PermissionError(13, "Permission denied", str(path))
        return real(path, *args, **kwargs)

    monkeypatch.setattr(Path, "open", refuse)
    assert_one_line(resume(), str(secret), "Permission denied")
    assert secret.exists()


def test_checkpoints_that_nobody_may_list_are_not_absent(copy, resume, monkeypatch):
    """Else the run would start again, at step 0."""
    real = os.listdir

    def refuse(path="."):
        if Path(path).name == "checkpoints":
            raise PermissionError(13, "Permission denied", str(path))
        return real(path)

    monkeypatch.setattr(os, "listdir", refuse)
    assert_one_line(resume(), "run/checkpoints: Permission denied")


def test_a_folder_in_place_of_the_log_or_the_lock_is_one_line(copy, call, options):
    for name in ("metrics.csv", ".lock"):
        Path("run", name).unlink(missing_ok=True)
        Path("run", name).mkdir()
        assert_one_line(call(7, "--out", "run", "--resume", "--stop-at", "5"), name)
        Path("run", name).rmdir()


def test_a_lock_that_can_not_be_written_is_one_line(copy, resume, monkeypatch):
    def refuse(*_):
        raise PermissionError(13, "Permission denied", "run/.lock")

    monkeypatch.setattr("filelock.FileLock._acquire", refuse)
    assert_one_line(resume(), "run/.lock: Permission denied")


@pytest.mark.parametrize("text", ["lr = " + "[" * 100_000, "[a" + ".a" * 2000 + "]"])
def test_a_deep_recipe_is_one_line(resume, text):
    Path("deep.toml").write_text(text)
    assert_one_line(resume("--recipe", "deep.toml"), "deep.toml")


@pytest.mark.parametrize("umask", [0o022, 0o077])
def test_the_umask_decides_who_may_read(call, options, monkeypatch, umask):
    monkeypatch.setitem(sys.modules, "common.pretrained", pretrained)  # the real export
    before = os.umask(umask)
    try:
        assert call(7, *options, "--stop-at", "1", "--out", "run")[0] == 0
    finally:
        os.umask(before)
    paths = [p for p in Path("run").rglob("*") if p.is_file() and p.name != ".lock"]
    assert {p.suffix for p in paths} >= {".safetensors", ".json", ".md"}
    for path in paths:
        assert path.stat().st_mode & 0o777 == 0o666 & ~umask, path
