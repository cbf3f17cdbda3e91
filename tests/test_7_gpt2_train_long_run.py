"""Stage 7: what a run computes, logs and writes."""

import csv
import json
import math
import os
import re
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest
import torch
from conftest import SCRIPTS, load_script
from helpers import (
    TINY,
    checkpoints,
    finished_run,
    logged,
    losses,
    neither_sample_nor_plot,
    one_thread,
    only_train,
    saved,
    state,
    val_losses,
)
from safetensors.torch import load_file
from transformers import GPT2LMHeadModel

from common.data import Batches, load_tokens
from common.init import init_weights, tie_weights
from common.kit.cli import in_one_line
from common.model import GPT, GPTConfig
from common.optim import learning_rate
from common.run.log import LongRunLog
from common.run.ranks import Ranks
from common.run.recipes import RECIPES

VOCAB = RECIPES["laptop"]["vocab_size"]


@pytest.fixture(autouse=True)
def one(quick_peak):
    with one_thread():
        yield


@pytest.fixture(scope="module", autouse=True)
def users_run(text_file, tmp_path_factory):
    """(process, folder) of a whole run as a user makes it, which goes on beside the other tests."""
    folder = tmp_path_factory.mktemp("user")
    options = (*TINY, "--model", "gpt-nano", "--block-size", "32", "--total-batch-tokens", "128",
               "--eval-tokens", "4096", "--eval-every", "9", "--checkpoint-every", "4",
               "--steps", "14")  # fmt: skip
    process = subprocess.Popen(
        [sys.executable, str(SCRIPTS[7]), "--data", str(text_file), *options], cwd=folder,
        env=os.environ | {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    yield process, folder / "runs/7_long_run"
    process.kill()


@pytest.fixture
def short(monkeypatch):
    only_train(monkeypatch)


def tiny_model() -> GPT:
    """The model that TINY describes, as a run begins with it."""
    return init_weights(tie_weights(GPT(GPTConfig(1, 1, 16, 8, VOCAB))), 1337)


def test_fine_tuning_starts_where_the_export_ended(call, refused, text_file, monkeypatch):
    neither_sample_nor_plot(monkeypatch)
    data = ("--data", str(text_file))
    assert call(7, *TINY, *data, "--steps", "8", "--out", "one")[0] == 0
    tuning = (*TINY[2:], *data, "--init-from", "one/hf", "--out", "two")
    words = f"one/hf has {VOCAB} tokens: give --vocab-size {VOCAB}"  # by default it is that
    refused(words, 7, *tuning, "--vocab-size", "50257")
    refused("--block-size 16 is more than the 8 of one/hf", 7, *tuning, "--block-size", "16")
    code, _, stderr = call(7, *tuning, "--steps", "2")
    assert code == 0, stderr
    before, after = val_losses(Path("one"))[8], val_losses(Path("two"))[0]
    assert float(after) == pytest.approx(float(before), abs=1e-3)
    Path("one").rename("moved")  # the weights are in the checkpoint
    assert call(7, "--out", "two", "--resume", "--steps", "3")[0] == 0


# The step


CLIPPED = ("--steps", "3", "--warmup-steps", "2", "--clip", "0.5", "--weight-decay", "0.3",
           "--optimizer", "adamw")  # fmt: skip


@pytest.fixture(scope="module")
def three_steps(text_file, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("three") / "run"
    return finished_run(folder, *TINY, "--data", str(text_file), *CLIPPED)


def test_three_steps_by_hand(three_steps, text_file):
    """Two micro-batches, a clip that bites, the schedule, AdamW: the same weights bit for bit."""
    model = tiny_model()
    decay, rest = (
        [p for p in model.parameters() if (p.dim() == 2) == two] for two in (True, False)
    )
    groups = [{"params": decay, "weight_decay": 0.3}, {"params": rest, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, betas=(0.9, 0.95), eps=1e-8, fused=True)
    batches = Batches(load_tokens(str(text_file), VOCAB).train, 2, 8, seed=1337)
    for lr in (0.5e-2, 1e-2, 1e-2):  # the cosine begins at its top
        for group in optimizer.param_groups:
            group["lr"] = lr
        for _ in range(2):
            (model(*next(batches))[1] / 2).backward()
        assert torch.nn.utils.clip_grad_norm_(model.parameters(), 0.5) > 0.5
        optimizer.step()
        optimizer.zero_grad()
    weights = load_file(three_steps / "checkpoints/step_00000003/model.safetensors")
    for name, parameter in model.named_parameters():
        assert torch.equal(weights[name], parameter), name


def test_the_logged_loss_and_norm_are_those_of_the_whole_batch(three_steps, text_file):
    """Step 0: four windows in two micro-batches. The norm is the one before clipping."""
    model = tiny_model()
    loss = model(*next(Batches(load_tokens(str(text_file), VOCAB).train, 4, 8, seed=1337)))[1]
    loss.backward()
    norm = torch.nn.utils.get_total_norm([p.grad for p in model.parameters()])
    step, logged_loss, _, logged_norm, *_ = logged(three_steps)[1]
    assert step == "0" and float(logged_loss) == pytest.approx(loss.item(), rel=1e-6)
    assert float(logged_norm) == pytest.approx(norm.item(), rel=1e-5)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_gradients_in_16_bits_are_unscaled_and_then_clipped(
    call, text_file, three_steps, dtype, short
):
    """After one step AdamW's first moment is a tenth of the clipped gradient."""

    def first_step(dtype):
        options = (*TINY, "--data", str(text_file), *CLIPPED, "--stop-at", "1", "--dtype", dtype)
        assert call(7, *options, "--out", dtype)[0] == 0
        path = Path(dtype, "checkpoints/step_00000001/optimizer.safetensors")
        numbers = [float(text) for text in logged(Path(dtype))[1][1:4]]  # loss, lr, norm
        return numbers, load_file(path)["transformer.wpe.weight/exp_avg"]

    (numbers, moment), (expected, moment32) = first_step(dtype), first_step("float32")
    assert numbers[0] != expected[0]
    assert numbers == pytest.approx(expected, rel=0.02)
    assert (moment - moment32).norm() / moment32.norm() < 0.1


def test_dropout_is_for_training_alone(call, text_file, short):
    options = (*TINY, "--data", str(text_file), "--steps", "1")
    for out, dropout in (("one", "0"), ("two", "0.3")):
        assert call(7, *options, "--dropout", dropout, "--out", out)[0] == 0
    (before, one, after), (before2, two, after2) = logged(Path("one")), logged(Path("two"))
    assert one[1] != two[1] and after != after2
    assert before == before2  # evaluation of the same model


def test_ranks_exchange_gradients_in_the_last_micro_batch_alone(
    call, text_file, monkeypatch, short
):
    seen, exchanging = [], Ranks.exchanging

    def watched(ranks, loss_of, now):
        seen.append(now)
        return exchanging(ranks, loss_of, now)

    monkeypatch.setattr(Ranks, "exchanging", watched)
    options = (*TINY, "--data", str(text_file), "--total-batch-tokens", "48", "--steps", "2")
    assert call(7, *options, "--out", "run")[0] == 0
    assert seen == [False, False, True] * 2


# Numbers that are not finite


def test_a_loss_that_is_not_a_number_stops_before_the_weights_change(
    call, text_file, monkeypatch, short
):
    updates, step = [], torch.optim.AdamW.step

    def counted(*args, **kwargs):
        updates.append(1)
        return step(*args, **kwargs)

    monkeypatch.setattr(torch.optim.AdamW, "step", counted)
    options = (*TINY, "--data", str(text_file), "--steps", "9", "--checkpoint-every", "1")
    code, _, stderr = call(7, *options, "--lr", "1e30", "--warmup-steps", "0", "--out", "run")
    assert code == 2 and stderr.startswith("error: step ") and "lower --lr" in stderr
    assert stderr.count("\n") == 1
    last = int(re.search(r"step (\d+) was not", stderr)[1])
    assert len(updates) == last  # one for each step before
    assert checkpoints(Path("run"))[-1] == f"step_{last:08d}"
    weights = load_file(Path(f"run/checkpoints/step_{last:08d}/model.safetensors"))
    assert all(tensor.isfinite().all() for tensor in weights.values())


def test_a_gradient_that_is_not_finite_stops_the_run(refused, text_file, monkeypatch, short):
    monkeypatch.setattr("torch.nn.utils.clip_grad_norm_", lambda *_: torch.tensor(math.inf))
    refused("gradient norm inf", 7, *TINY, "--data", str(text_file), "--steps", "9")


FP16 = (*TINY, "--dtype", "float16")


def test_fp16_counts_the_steps_that_its_scaler_skips(call, text_file, monkeypatch, short):
    """The scale begins so high that the first gradients overflow; each overflow halves it."""
    begin_high = partial(torch.amp.GradScaler, init_scale=2.0**20)
    monkeypatch.setattr("torch.amp.GradScaler", begin_high)
    options = (*FP16, "--data", str(text_file), "--steps", "6")
    code, _, stderr = call(7, *options, "--out", "run")
    assert code == 0, stderr
    skipped = sum(row[3] in ("inf", "nan") for row in logged(Path("run")))
    assert 0 < skipped < 6
    found = state(Path("run"))
    assert found["scaler"]["scale"] == 2.0**20 / 2**skipped


# The log


COLUMNS = ("step", "loss", "norm", "ms", "tokens_per_s", "mfu", "val_loss")


def log_of(folder: Path | None, first: int = 0) -> LongRunLog:
    options = load_script(7).Options()
    return LongRunLog(folder, COLUMNS, 9, options, first, 50.0)


def test_a_log_is_resumed_at_a_step(tmp_path, capsys):
    with log_of(tmp_path) as log:
        for step in range(5):
            log.row(step=step, loss=1 / 3 + step, norm=2.0, ms=100.0, tokens_per_s=20.0)
        log.val(5, 9.5)
    assert "MFU 40%" in capsys.readouterr().out
    with (tmp_path / "metrics.csv").open("a") as file:
        file.write("1,0.2")  # cut short by a kill
    before = (tmp_path / "metrics.csv").read_text().splitlines()
    with log_of(tmp_path, first=3) as log:
        log.row(step=3, loss=7.0, norm=1.0, ms=100.0, tokens_per_s=20.0)
    after = (tmp_path / "metrics.csv").read_text().splitlines()
    assert after == [*before[:4], "3,7.0,1.0,100.0,20.0,0.4,"]
    assert (tmp_path / "metrics.png").exists()


def test_a_new_log_in_an_old_folder_begins_anew(tmp_path):
    with log_of(tmp_path) as log:
        log.val(0, 9.5)
    with log_of(tmp_path) as log:
        log.val(0, 8.5)
    assert (tmp_path / "metrics.csv").read_text().splitlines()[1:] == ["0,,,,,,8.5"]


@pytest.mark.parametrize("losses, words", [([9, 7, 8], "was 7.0000, at step 1\n"), ([9, 8], "")])
def test_a_lowest_validation_loss_before_the_last_is_named(tmp_path, capsys, losses, words):
    with log_of(tmp_path) as log:
        for step, loss in enumerate(losses):
            log.val(step, loss)
    said = capsys.readouterr().out
    assert words in said and ("the lowest" in said) == bool(words)


def test_a_rank_that_does_not_write_has_a_log_without_a_folder(tmp_path):
    with log_of(None) as log:
        log.row(step=0, loss=1.0, norm=1.0, ms=1.0, tokens_per_s=1.0)
        log.val(0, 1.0)
        log.sync(), log.plot()
    assert list(tmp_path.iterdir()) == []


def test_a_log_on_a_full_disk_is_one_line(tmp_path):
    log = log_of(tmp_path)
    log.file = open("/dev/full", "w")
    log.writer = csv.DictWriter(log.file, COLUMNS, extrasaction="ignore")
    with pytest.raises(OSError) as error:
        log.row(step=0, loss=1.0, norm=1.0, ms=1.0, tokens_per_s=1.0)
    assert in_one_line(error.value) == "the disk: No space left on device: make room"


def test_saved_files(three_steps):
    """Every weight is there once, by Hugging Face's name, with two moments and a count."""
    path = three_steps / "checkpoints/step_00000003"
    weights, moments = (load_file(path / f"{n}.safetensors") for n in ("model", "optimizer"))
    names = {name for name, _ in tiny_model().named_parameters()}
    assert weights.keys() == names and "lm_head.weight" not in names
    assert moments.keys() == {f"{name}/{key}" for name in names
                              for key in ("step", "exp_avg", "exp_avg_sq")}  # fmt: skip
    assert set(saved(three_steps)) == {
        "model.safetensors", "optimizer.safetensors", "random.safetensors", "state.json",
        "model.json",
    }  # fmt: skip
    assert state(three_steps)["step"] == 3


# A run, whole


def test_a_run_as_a_user_makes_it(call, users_run, text_file):
    process, folder = users_run
    stdout, stderr = process.communicate(timeout=120)
    assert process.returncode == 0 and stderr == "", stderr
    assert max(len(line) for line in stdout.splitlines() if line.startswith("step")) <= 80
    assert {p.name for p in folder.iterdir()} == {
        "config.json", "metrics.csv", "metrics.png", "checkpoints", "hf", ".lock"
    }  # fmt: skip
    assert checkpoints(folder) == ["step_00000012", "step_00000014"]
    assert list(losses(folder)) == list(range(14))
    assert list(val_losses(folder)) == [0, 9, 14]
    printed = re.findall(r"^step +(\d+)  loss +([\d.]+)", stdout, re.M)
    assert [(int(step), float(loss)) for step, loss in printed] == [
        (step, round(float(loss), 4)) for step, loss in losses(folder).items()
    ]
    val = {step: float(loss) for step, loss in val_losses(folder).items()}
    assert val[14] < val[0] - 1
    config = json.loads((folder / "config.json").read_text())
    assert config["recipe"] == "laptop" and config["lr"] == 1e-2 and config["warmup_steps"] == 1
    for step, loss, lr, *_ in logged(folder):
        if loss:
            assert float(lr) == pytest.approx(learning_rate(int(step), 1e-2, 1, 14, 0), rel=1e-12)

    # Stage 1 reads the export, and transformers' own model has the validation loss of the log.
    code, _, stderr = call(1, "--model", str(folder / "hf"), "--data", str(text_file),
                           "--samples", "1")  # fmt: skip
    assert code == 0, stderr
    ids = torch.from_numpy(load_tokens(str(text_file), VOCAB).val.astype("int64"))
    reference = GPT2LMHeadModel.from_pretrained(folder / "hf")
    assert reference.config.vocab_size == VOCAB
    with torch.no_grad():
        found = [
            reference(ids[None, i : i + 33][:, :-1]).logits[0].log_softmax(-1)
            .gather(-1, ids[i + 1 : i + 33, None])
            for i in range(0, len(ids) - 1, 32)
        ]  # fmt: skip
    assert -torch.cat(found).mean().item() == pytest.approx(val[14], abs=2e-3)
