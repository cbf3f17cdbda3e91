"""Stage 3: tokens, batches, and what a run leaves behind."""

import csv
import hashlib
import re
import signal
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import run_script, started

from common.data import Batches, load_tokens, val_size
from common.kit.disk import run_folder
from common.kit.runlog import RunLog
from common.tokenizer import gpt2_tokenizer

SMALL = ("--model", "gpt-nano", "--batch-size", "2", "--block-size", "16", "--device", "cpu")


def starts(batches, n):
    """The first ids of the rows of the next n batches; the tokens must be 0, 1, 2, …"""
    return [int(row[0]) for _ in range(n) for row in next(batches)[0]]


@pytest.mark.parametrize("n, B, T", [(1001, 4, 10), (1000, 4, 10), (997, 3, 7), (65, 1, 64)])
def test_an_epoch_holds_every_window_once(n, B, T):
    batches = Batches(np.arange(n), B, T, seed=3)
    windows = (n - 1) // T
    assert batches.n_windows == windows
    rows = starts(batches, 2 * -(-windows // B))
    epochs = rows[:windows], rows[windows : 2 * windows]
    for epoch in epochs[: len(rows) // windows]:
        assert sorted(epoch) == [i * T for i in range(windows)]
    if windows > 5:
        assert epochs[0] != sorted(epochs[0]) and epochs[0] != epochs[1]


def test_targets_are_one_token_later():
    x, y = next(Batches(np.arange(500, dtype=np.uint16), 4, 9))
    assert x.shape == y.shape == (4, 9) and x.dtype == torch.int64
    assert torch.equal(y, x + 1) and torch.equal(x, x[:, :1] + torch.arange(9))


def test_order_depends_on_the_seed_alone():
    tokens = np.arange(300)
    one, two, other = (starts(Batches(tokens, 2, 5, seed=s), 30) for s in (1, 1, 2))
    assert one == two != other


def test_an_order_belongs_to_one_seed_and_one_epoch():
    def order(seed, epoch):
        batches = Batches(np.arange(777), 4, 7, seed)
        batches.epoch = epoch
        return tuple(starts(batches, 20))

    assert len({order(seed, epoch) for seed in range(3) for epoch in range(3)}) == 9


def test_only_the_orders_in_use_are_kept():
    batches = Batches(np.arange(777), 4, 7)
    starts(batches, 10 * 28)
    assert batches.epoch > 5 and batches._order.cache_info().currsize <= 2


def test_at_most_16384_tokens_are_for_validation():
    assert val_size(200_000, "text") == 16_384 and val_size(5000, "text") == 500


def test_the_validation_text_is_cut_once(text_file):
    tokens = load_tokens(str(text_file))
    n = len(tokens.train) + len(tokens.val)
    assert len(tokens.val) == n // 10
    whole = np.concatenate([tokens.train, tokens.val])
    assert gpt2_tokenizer().decode(whole.tolist()) == text_file.read_text()


def test_the_script_as_a_user_runs_it(text_file, tmp_path):
    done = run_script(
        3, *SMALL, "--data", str(text_file), "--steps", "30", "--lr", "1e-2", cwd=tmp_path
    )
    assert done.returncode == 0 and done.stderr == "", done.stderr
    assert "an epoch: " in done.stdout and "to go" in done.stdout
    before, after = map(float, re.findall(r"^  loss ([\d.]+)", done.stdout, re.M))
    assert f"validation loss before training: {before:.4f}" in done.stdout
    assert max(map(len, done.stdout.splitlines())) <= 80
    assert before > 10 and after < before - 1
    rows = list(csv.DictReader((tmp_path / "runs/3_dataloader/metrics.csv").open()))
    assert [int(row["step"]) for row in rows if row["loss"]] == list(range(30))
    losses = [float(row["val_loss"]) for row in rows if row["val_loss"]]
    assert losses == pytest.approx([before, after], abs=1e-4)
    printed = [float(x) for x in re.findall(r"^step .*loss +([\d.]+)", done.stdout, re.M)]
    assert printed == [round(float(row["loss"]), 4) for row in rows if row["loss"]]
    picture = (tmp_path / "runs/3_dataloader/metrics.png").read_bytes()
    assert picture.startswith(b"\x89PNG") and picture.rstrip().endswith(b"IEND\xaeB`\x82")


def test_two_runs_are_the_same(call, text_file, tmp_path):
    options = ("--model", "gpt-nano", "--batch-size", "2", "--block-size", "16", "--steps", "4")
    for out in "ab":
        assert call(3, *options, "--data", str(text_file), "--out", out)[0] == 0
    one, two = (
        [row["loss"] for row in csv.DictReader((tmp_path / out / "metrics.csv").open())]
        for out in "ab"
    )
    assert one == two


def test_two_runs_in_one_folder_are_refused(refused, text_file):
    with RunLog(run_folder("runs/3_dataloader"), ("step", "loss"), 1):
        refused("another process trains in runs/3_dataloader", 3, "--data", str(text_file))


def test_a_run_of_stage_7_is_not_overwritten(refused, text_file):
    (run_folder("run") / "config.json").write_text("{}")
    refused("run holds a run of stage 7", 3, "--data", str(text_file), "--out", "run")
    assert [path.name for path in Path("run").iterdir()] == ["config.json"]


def test_ctrl_c_leaves_whole_files(text_file, tmp_path):
    options = (*SMALL, "--data", str(text_file), "--steps", "99999")
    process = started(3, *options, cwd=tmp_path, until="step   20")
    process.send_signal(signal.SIGINT)
    stdout, stderr = process.communicate(timeout=30)
    assert process.returncode == 130 and "Traceback" not in stderr
    folder = tmp_path / "runs/3_dataloader"
    assert {p.name for p in folder.iterdir()} == {".lock", "metrics.csv", "metrics.png"}
    rows = list(csv.reader((folder / "metrics.csv").open()))
    assert len(rows) > 20 and {len(row) for row in rows} == {5}
    assert "metrics.png" in stdout


def test_a_picture_shows_its_own_run(tmp_path):
    def picture(losses):
        with RunLog(tmp_path, ("step", "loss"), steps=3) as log:
            for step, loss in enumerate(losses):
                log.row(step=step, loss=loss)
        return hashlib.sha256(Path(tmp_path / "metrics.png").read_bytes()).hexdigest()

    assert picture([3, 2, 1]) == picture([3, 2, 1]) != picture([3, 2, 2])


def test_the_time_left_is_that_of_all_curves(tmp_path, capsys):
    """Two runs of 10 steps of a minute: after the fifth step of each, 15 and 5 are left."""
    with RunLog(tmp_path, ("curve", "step", "loss", "ms"), steps=20) as log:
        for log.curve in ("one", "two"):
            for step in range(10):
                log.row(step=step, loss=1.0, ms=60000.0)
    said = [line for line in capsys.readouterr().out.splitlines() if "to go" in line]
    assert said == ["about 15 min to go", "about 5.0 min to go"]


def test_bad_input(refused, text_file, tmp_path):
    data = ("--data", str(text_file))
    refused("--batch-size is 0", 3, *data, "--batch-size", "0")
    refused("--block-size is -1", 3, *data, "--block-size", "-1")
    refused("a block size of 1024 tokens, not 2048", 3, *data, "--block-size", "2048")
    refused("fewer than a batch of 8", 3, *data, "--block-size", "1024")
    refused("no preset", 3, *data, "--model", "gpt-huge")
    refused("does not exist", 3, "--data", "gone")
    refused("~ and the name of no user", 3, "--data", "~no-such-user/text")
    (tmp_path / "short.txt").write_text("To be.")
    refused("too few for validation", 3, "--data", "short.txt")
    np.save(tmp_path / "ids.npy", np.arange(99))
    refused("ids.npy isn't UTF-8", 3, "--data", "ids.npy")
    (tmp_path / "file").write_text("")
    refused("can't be created", 3, *data, "--out", "file/run")
    for lr in ("0", "nan", "inf"):
        refused(f"--lr is {float(lr)}", 3, *data, "--lr", lr)
    refused("--seed is -1", 3, *data, "--seed", "-1")
    refused("--data is empty", 3, "--data", "")
    assert not (tmp_path / "runs").exists()
