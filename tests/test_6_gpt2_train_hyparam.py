"""Stage 6: GPT-3's step, many processes, and a run that nothing is lost of."""

import csv
import fcntl
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
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist
from conftest import ROOT, SCRIPTS, load_script, run_script, started
from safetensors.torch import load_file
from torch.nn.parallel import DistributedDataParallel
from transformers import GPT2LMHeadModel

from common import checkpoint
from common.cli import UserError, duration, run
from common.data import Batches, load_tokens
from common.disk import check_room
from common.distributed import Ranks
from common.init import init_weights, tie_weights
from common.model import GPT, PRESETS, GPTConfig
from common.optim import adamw, clip_gradients, learning_rate, parameter_groups
from common.recipes import RECIPES
from common.runlog import RunLog
from common.speed import Loss, pad_vocab

TINY = GPTConfig(n_layer=2, n_head=2, n_embd=32, block_size=32, vocab_size=500)
CPU = torch.device("cpu")
# A run of some milliseconds a step: batches of 4 windows of 32 tokens, 21 steps an epoch.
SMALL = (
    "--model", "gpt-nano", "--batch-size", "2", "--block-size", "32", "--total-batch-tokens", "128",
    "--dtype", "float32", "--attention", "formula", "--compile", "no", "--lr", "1e-2",
    "--checkpoint-every", "100", "--eval-every", "100",
)  # fmt: skip
LOGGED = ("step", "loss", "lr", "norm", "held_out", "bits_per_byte")


pytestmark = pytest.mark.usefixtures("quick_peak")


def small_model():
    return init_weights(tie_weights(GPT(TINY)), 1)


def logged(folder: Path) -> list[tuple]:
    """What a run logged, without its times."""
    with (folder / "metrics.csv").open() as file:
        return [tuple(row[name] for name in LOGGED) for row in csv.DictReader(file)]


def kept(folder: Path) -> dict[str, bytes]:
    """All that the newest checkpoint of a run holds, but the options."""
    path = max((folder / "checkpoints").glob("step_*"))
    return {p.name: p.read_bytes() for p in path.iterdir() if p.name != "config.json"}


def assert_same_run(one: Path, two: Path) -> None:
    assert logged(one) == logged(two)
    files, others = kept(one), kept(two)
    files.pop("manifest.json"), others.pop("manifest.json")
    assert files.keys() == others.keys() and len(files) == 5
    for name in files:
        assert files[name] == others[name], name


# The step


@pytest.mark.parametrize(
    "step, expected",
    [
        (0, 0.25), (1, 0.5), (3, 1.0), (4, 1.0), (8, 0.1 + 0.45 * (1 + 0.5**0.5)), (12, 0.55),
        (20, 0.1), (999, 0.1),
    ],
)  # fmt: skip
def test_the_schedule_by_hand(step, expected):
    assert learning_rate(step, 1.0, warmup_steps=4, steps=20) == pytest.approx(expected, rel=1e-12)


def test_the_schedule_without_warm_up_starts_at_the_top():
    assert learning_rate(0, 3e-4, warmup_steps=0, steps=10) == 3e-4
    assert learning_rate(0, 3e-4, warmup_steps=10, steps=10) == pytest.approx(3e-5)


def test_what_decays_in_gpt2():
    """nanoGPT prints the same counts for GPT-2 124M with a vocabulary of 50304."""
    with torch.device("meta"):
        model = tie_weights(GPT(GPTConfig(vocab_size=50304)))
    groups = parameter_groups(model, 0.1)
    numbers = [sum(p.numel() for p in group["params"]) for group in groups]
    tensors = [len(group["params"]) for group in groups]
    decay = [group["weight_decay"] for group in groups]
    assert list(zip(decay, tensors, numbers, strict=True)) == [
        (0.1, 50, 124_354_560),
        (0.0, 98, 121_344),
    ]


def test_adamw_by_hand():
    """One step from g = 0.5 and w = 2: the moments' ratio is 1, so w falls by lr, and by
    lr · decay · w where it decays."""
    matrix, bias = (torch.nn.Parameter(torch.full(shape, 2.0)) for shape in [(2, 2), (2,)])
    model = torch.nn.ParameterList([matrix, bias])
    for p in (matrix, bias):
        p.grad = torch.full_like(p, 0.5)
    optimizer = adamw(parameter_groups(model, 0.1), lr=0.01)
    optimizer.step()
    assert optimizer.defaults["fused"] and optimizer.defaults["betas"] == (0.9, 0.95)
    assert optimizer.defaults["eps"] == 1e-8
    torch.testing.assert_close(matrix.data, torch.full((2, 2), 2 - 0.01 * 0.1 * 2 - 0.01))
    torch.testing.assert_close(bias.data, torch.full((2,), 2 - 0.01))
    torch.testing.assert_close(optimizer.state[bias]["exp_avg_sq"], torch.full((2,), 0.05 * 0.25))


def test_the_three_forms_of_adamw_agree():
    results = []
    model, first = small_model(), small_model().state_dict()
    groups = parameter_groups(model, 0.1)  # the same for all three, as --bench has it
    for form in ("for-loop", "foreach", "fused"):
        model.load_state_dict(first)
        optimizer = adamw(groups, 1e-2, form)
        for name in ("foreach", "fused"):
            assert bool(optimizer.param_groups[1][name]) == (name == form)
        draw = torch.Generator().manual_seed(0)
        for _ in range(3):
            for p in model.parameters():
                p.grad = torch.randn(p.shape, generator=draw)
            optimizer.step()
        results.append({name: p.clone() for name, p in model.state_dict().items()})
    for other in results[1:]:
        for name, tensor in results[0].items():
            torch.testing.assert_close(other[name], tensor, rtol=1e-5, atol=1e-6)


def test_the_gradient_is_clipped_at_its_global_norm():
    model = torch.nn.ParameterList([torch.zeros(2), torch.zeros(1)])
    model[0].grad, model[1].grad = torch.tensor([2.0, 4.0]), torch.tensor([4.0])
    assert clip_gradients(model, math.inf).item() == 6  # √(4 + 16 + 16)
    assert model[0].grad.tolist() == [2, 4]
    assert clip_gradients(model, 7.0).item() == 6
    assert model[0].grad.tolist() == [2, 4]
    assert clip_gradients(model, 1.5).item() == 6
    torch.testing.assert_close(model[0].grad, torch.tensor([0.5, 1.0]))
    torch.testing.assert_close(model[1].grad, torch.tensor([1.0]))


def test_the_accumulated_gradient_is_that_of_the_big_batch():
    script, ids = load_script(6), np.arange(2000) * 7 % 500
    off = torch.amp.GradScaler(enabled=False)

    def gradient(B, n_micro):
        model = small_model()
        batches = Batches(ids, B, 16)
        total = script.mean_gradient(Loss(model), batches, n_micro, off, None, Ranks(CPU))
        return total.item() / n_micro, {n: p.grad for n, p in model.named_parameters()}

    loss, big = gradient(8, 1)
    mean, accumulated = gradient(2, 4)
    assert mean == pytest.approx(loss, rel=1e-6)
    for name in big:
        torch.testing.assert_close(accumulated[name], big[name], rtol=1e-4, atol=1e-7)
    model = small_model()
    model(*next(Batches(ids, 8, 16)))[1].backward()  # accumulation of 1: stage 5's gradient
    assert all(torch.equal(p.grad, big[n]) for n, p in model.named_parameters())


@pytest.mark.parametrize(
    "name, millions, batch, lr",
    [
        ("125m", 125, 0.5, 6.0e-4), ("350m", 356, 0.5, 3.0e-4), ("760m", 760, 0.5, 2.5e-4),
        ("1.3b", 1316, 1, 2.0e-4), ("2.7b", 2652, 1, 1.6e-4), ("6.7b", 6658, 2, 1.2e-4),
        ("13b", 12853, 2, 1.0e-4),
    ],
)  # fmt: skip
def test_recipes_are_table_2_1(name, millions, batch, lr):
    recipe = RECIPES[f"gpt3-{name}"]
    with torch.device("meta"):
        model = tie_weights(GPT(PRESETS[recipe["model"]]))
    assert round(sum(p.numel() for p in model.parameters()) / 1e6) == millions
    assert recipe["total_batch_tokens"] == batch * 2**20 and recipe["lr"] == lr
    assert recipe["block_size"] == 2048
    assert recipe["total_batch_tokens"] % (8 * recipe["batch_size"] * 2048) == 0  # 8 GPUs
    assert recipe["steps"] * recipe["total_batch_tokens"] == pytest.approx(260e9, rel=1e-5)


# The run


def test_a_run_as_a_user_makes_it(text_file, tmp_path):
    options = (*SMALL, "--eval-every", "6", "--checkpoint-every", "4", "--steps", "14")
    done = run_script(6, "--data", str(text_file), *options, cwd=tmp_path)
    assert done.returncode == 0 and done.stderr == "", done.stderr
    assert max(len(line) for line in done.stdout.splitlines() if line.startswith("step")) <= 80
    assert "weight decay 0.1: 14 tensors" in done.stdout
    folder = tmp_path / "runs/6_hyparam"
    assert {p.name for p in folder.iterdir()} == {
        "config.json", "metrics.csv", "metrics.png", "checkpoints", "hf", ".lock"
    }  # fmt: skip
    assert sorted(p.name for p in (folder / "checkpoints").iterdir()) == [
        "step_00000012", "step_00000014"
    ]  # fmt: skip
    rows = logged(folder)
    assert [int(row[0]) for row in rows if row[1]] == list(range(14))
    assert [int(row[0]) for row in rows if row[4]] == [0, 6, 12, 14]
    printed = re.findall(r"^step +(\d+)  loss ([\d.]+)", done.stdout, re.M)
    assert [(int(s), float(x)) for s, x in printed] == [
        (int(row[0]), round(float(row[1]), 4)) for row in rows if row[1]
    ]
    assert float(rows[-1][4]) < float(rows[0][4]) - 1
    config = json.loads((folder / "config.json").read_text())
    assert config["recipe"] == "laptop" and config["lr"] == 1e-2 and config["warmup_steps"] == 1
    for row in rows:
        if row[1]:
            expected = learning_rate(int(row[0]), 1e-2, 1, 14)
            assert float(row[2]) == pytest.approx(expected, rel=1e-12)

    # and back to stage 1: ours and Hugging Face's model of it say what the log says
    back = run_script(1, "--model", str(folder / "hf"), "--data", str(text_file), "--samples", "1",
                      cwd=tmp_path)  # fmt: skip
    assert back.returncode == 0, back.stderr
    held_out = torch.from_numpy(load_tokens(str(text_file)).held_out.astype("int64"))
    reference = GPT2LMHeadModel.from_pretrained(folder / "hf")
    assert reference.config.vocab_size == 50257
    with torch.no_grad():
        losses = [
            reference(held_out[None, i : i + 33][:, :-1]).logits[0].log_softmax(-1)
            .gather(-1, held_out[i + 1 : i + 33, None])
            for i in range(0, len(held_out) - 1, 32)
        ]  # fmt: skip
    assert -torch.cat(losses).mean().item() == pytest.approx(float(rows[-1][4]), abs=2e-3)


def test_three_steps_by_hand(call, text_file):
    """Two micro-batches, a clip that bites, the schedule, AdamW: the same weights bit for bit."""
    options = ("--steps", "3", "--warmup-steps", "2", "--clip", "0.5", "--weight-decay", "0.3")
    assert call(6, *SMALL, "--data", str(text_file), *options, "--out", "run")[0] == 0
    model = pad_vocab(init_weights(tie_weights(GPT(GPTConfig(3, 3, 48, 32))), 1337))
    decay, rest = (
        [p for p in model.parameters() if (p.dim() == 2) == two] for two in (True, False)
    )
    groups = [{"params": decay, "weight_decay": 0.3}, {"params": rest, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, betas=(0.9, 0.95), eps=1e-8, fused=True)
    batches = Batches(load_tokens(str(text_file)).train, 2, 32, seed=1337)
    for lr in (0.5e-2, 1e-2, 1e-2):  # the cosine begins at its top
        for group in optimizer.param_groups:
            group["lr"] = lr
        for _ in range(2):
            (model(*next(batches))[1] / 2).backward()
        assert torch.nn.utils.clip_grad_norm_(model.parameters(), 0.5) > 0.5
        optimizer.step()
        optimizer.zero_grad()
    weights = load_file("run/checkpoints/step_00000003/model.safetensors")
    for name, parameter in model.named_parameters():
        assert torch.equal(weights[name], parameter), name


def test_16_bits_are_used_and_their_gradients_are_unscaled_then_clipped(call, text_file):
    moments, rows = {}, {}
    for dtype in ("float32", "bfloat16", "float16"):
        options = ("--data", str(text_file), "--steps", "1", "--clip", "0.5", "--dtype", dtype)
        assert call(6, *SMALL, *options, "--out", dtype)[0] == 0
        rows[dtype] = [float(x) for x in logged(Path(dtype))[1][1:4]]  # loss, lr, norm
        path = Path(dtype, "checkpoints/step_00000001/optimizer.safetensors")
        moments[dtype] = load_file(path)["transformer.wpe.weight/exp_avg"]
    for dtype in ("bfloat16", "float16"):
        assert rows[dtype][0] != rows["float32"][0]
        assert rows[dtype] == pytest.approx(rows["float32"], rel=0.02)
        error = (moments[dtype] - moments["float32"]).norm() / moments["float32"].norm()
        assert error < 0.1


def test_dropout_drops(call, text_file):
    options = (*SMALL, "--data", str(text_file), "--steps", "1")
    for out, dropout in (("one", "0"), ("two", "0.3")):
        assert call(6, *options, "--dropout", dropout, "--out", out)[0] == 0
    (_, one, after), (_, two, other) = logged(Path("one")), logged(Path("two"))
    assert one[1] != two[1]  # the loss of the first step; but not in evaluation:
    assert logged(Path("one"))[0] == logged(Path("two"))[0] and after != other


def test_gradients_are_exchanged_on_the_last_micro_step_alone():
    seen = []

    class Seen(Ranks):
        def exchanging(self, module, now):
            seen.append(now)
            return super().exchanging(module, now)

    script, model = load_script(6), small_model()
    off = torch.amp.GradScaler(enabled=False)
    batches = Batches(np.arange(2000) % 500, 2, 16)
    script.mean_gradient(Loss(model), batches, 3, off, None, Seen(CPU))
    assert seen == [False, False, True]
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        module = DistributedDataParallel(model)
        for now in (False, True):
            with Ranks(CPU).exchanging(module, now):
                assert module.require_backward_grad_sync == now
    finally:
        dist.destroy_process_group()


def test_one_rank_a_machine_goes_first(monkeypatch):
    order = []
    monkeypatch.setattr(dist, "barrier", lambda: order.append("barrier"))
    for local_rank in (0, 1):
        with Ranks(CPU, 2 + local_rank, 4, local_rank).first():
            order.append(local_rank)
    assert order == [0, "barrier", "barrier", 1]


def test_the_logged_loss_is_the_mean_of_the_batch(call, text_file):
    """Step 0: four windows in two micro-batches, on the model as stage 4 starts it."""
    assert call(6, *SMALL, "--data", str(text_file), "--steps", "1", "--out", "run")[0] == 0
    model = pad_vocab(init_weights(tie_weights(GPT(GPTConfig(3, 3, 48, 32))), 1337))
    x, y = next(Batches(load_tokens(str(text_file)).train, 4, 32, seed=1337))
    assert float(logged(Path("run"))[1][1]) == pytest.approx(model(x, y)[1].item(), rel=1e-6)


def test_the_options_win_over_the_recipe_and_a_file_is_one(call, text_file, tmp_path):
    (tmp_path / "best.toml").write_text(
        'model = "gpt-nano"\nlr = 0.5\nsteps = 2\nblock_size = 16\n'
    )
    options = ("--total-batch-tokens", "256", "--compile", "no", "--data", str(text_file))
    code, stdout, _ = call(6, "--recipe", "best.toml", "--lr", "0.25", *options, "--out", "run")
    assert code == 0
    config = json.loads(Path("run/config.json").read_text())
    assert config["recipe"] == "best.toml" and config["lr"] == 0.25 and config["block_size"] == 16
    assert "lr=0.25" in stdout and "gpt-nano" in stdout


def test_the_bench_prints_a_row_for_each_form_and_accumulation(call, text_file):
    code, stdout, _ = call(6, *SMALL, "--data", str(text_file), "--bench")
    row = r"^(for-loop|foreach|fused) +(\d) +[\d,]+ +±\d+% +[\d.]+ +[\d,]+ +([\d.]+) +100 +[\d.]+%$"
    rows = re.findall(row, stdout, re.M)
    assert code == 0 and [(form, int(n)) for form, n, _ in rows] == [
        ("for-loop", 1), ("foreach", 1), ("fused", 1), ("fused", 2), ("fused", 4), ("fused", 8),
        ("for-loop", 1),
    ]  # fmt: skip
    assert rows[0][2] == "1.00"
    assert not Path("runs").exists()


def test_fine_tuning_starts_where_the_export_ended(call, text_file):
    data = ("--data", str(text_file))
    assert call(6, *SMALL, *data, "--steps", "8", "--out", "one")[0] == 0
    options = [*SMALL[2:], *data, "--init-from", "one/hf", "--steps", "2", "--out", "two"]
    code, _, stderr = call(6, *options)
    assert code == 0, stderr
    before, after = float(logged(Path("one"))[-1][4]), float(logged(Path("two"))[0][4])
    assert after == pytest.approx(before, abs=1e-3)
    assert call(6, "--out", "two", "--resume", "--stop-at", "2")[0] == 0  # with no --init-from


def test_tensorboard_is_an_option(call, refused, text_file, monkeypatch):
    monkeypatch.setattr("common.recipes.find_spec", lambda name: None)
    refused("pip install tensorboard", 6, *SMALL, "--data", str(text_file), "--tensorboard")
    assert not Path("runs").exists()
    monkeypatch.undo()


def test_a_log_that_goes_on(tmp_path):
    columns = ("step", "loss", "norm", "held_out")
    with RunLog(tmp_path, *columns, panels={"norm": "norm"}) as log:
        for step in range(5):
            log.row(step=step, loss=1 / 3 + step, norm=2.0)
        log.held_out(5, 9.5)
    with (tmp_path / "metrics.csv").open("a") as file:
        file.write("1,0.2")  # cut short by a kill
    before = (tmp_path / "metrics.csv").read_text().splitlines()
    with RunLog(tmp_path, *columns, panels={"norm": "norm"}, resume_at=3) as log:
        assert log.curves["training"] == [(k, 1 / 3 + k) for k in range(3)]
        assert log.panels["norm"] == [(k, 2.0) for k in range(3)]
        log.row(step=3, loss=7.0, norm=1.0)
    after = (tmp_path / "metrics.csv").read_text().splitlines()
    assert after == [*before[:4], "3,7.0,1.0,"]
    with RunLog(None, *columns) as log:
        log.row(step=0, loss=1.0, norm=1.0)


# Nothing is lost


@pytest.mark.parametrize("extra", [(), ("--dropout", "0.2", "--seed", "3")])
def test_stop_and_go_on_is_the_same_run(call, text_file, extra):
    """26 steps of 4 windows, of 84 an epoch: stopped at 13 in the middle of the first."""
    options = (*SMALL, "--data", str(text_file), "--steps", "26", *extra)
    assert call(6, *options, "--out", "one")[0] == 0
    assert call(6, *options, "--out", "two", "--stop-at", "13")[0] == 0
    torch.manual_seed(99)
    code, stdout, _ = call(6, "--out", "two", "--resume")
    assert code == 0 and "going on from two/checkpoints/step_00000013" in stdout
    assert_same_run(Path("one"), Path("two"))
    state = json.loads(kept(Path("one"))["state.json"])
    assert state["data"]["epoch"] == 1 and state["data"]["position"] > 0


# Slow on a CPU, which has to emulate it: batches of 16 tokens.
FP16 = (
    *SMALL, "--dtype", "float16", "--batch-size", "1", "--block-size", "8",
    "--total-batch-tokens", "16", "--eval-every", "1000",
)  # fmt: skip


def test_stop_and_go_on_with_a_gradient_scaler(call, text_file):
    options = (*FP16, "--data", str(text_file), "--steps", "6")
    assert call(6, *options, "--out", "one")[0] == 0
    assert call(6, *options, "--out", "two", "--stop-at", "3")[0] == 0
    assert call(6, "--out", "two", "--resume")[0] == 0
    assert_same_run(Path("one"), Path("two"))
    assert json.loads(kept(Path("one"))["state.json"])["scaler"]["_growth_tracker"] > 3


def test_stop_and_go_on_with_compile_dropout_and_bf16(text_file, tmp_path):
    """Real processes, two threads: a compiled step must add up in one order."""
    options = (*SMALL, "--compile", "yes", "--dropout", "0.1", "--data", str(text_file),
               "--model", "1x2x32")  # fmt: skip
    if torch.cpu.get_capabilities().get("avx512_bf16"):
        options += ("--dtype", "bfloat16")
    for extra in (["--out", "one"], ["--out", "two", "--stop-at", "4"]):
        done = run_script(6, *options, "--steps", "8", *extra, cwd=tmp_path)
        assert done.returncode == 0, done.stderr
    done = run_script(6, "--out", "two", "--resume", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert_same_run(tmp_path / "one", tmp_path / "two")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_stops_after_the_step_with_a_checkpoint(text_file, tmp_path, number):
    options = (*SMALL, "--data", str(text_file), "--steps", "100000", "--out", "run")
    process = started(6, *options, cwd=tmp_path, until="step    5")
    process.send_signal(number)
    stdout, stderr = process.communicate(timeout=60)
    assert process.returncode == 0 and "Traceback" not in stderr, stderr
    assert "finishing this step" in stderr and "--resume goes on" in stdout
    rows = [row for row in logged(tmp_path / "run") if row[1]]
    path = max((tmp_path / "run/checkpoints").iterdir())
    assert checkpoint.why_damaged(path) is None
    assert checkpoint.read(path)["state"]["step"] == len(rows)
    assert (tmp_path / "run/metrics.png").exists() and not (tmp_path / "run/hf").exists()


def test_a_second_ctrl_c_ends_at_once(text_file, tmp_path):
    options = (*SMALL, "--total-batch-tokens", str(64 * 20000), "--data", str(text_file))
    process = started(6, *options, "--out", "run", cwd=tmp_path, until="step    0")  # held out
    time.sleep(1)
    process.send_signal(signal.SIGINT)
    time.sleep(1)
    assert process.poll() is None
    process.send_signal(signal.SIGINT)
    _, stderr = process.communicate(timeout=20)
    assert process.returncode == 130 and "Traceback" not in stderr


def tensors_of(step: int) -> dict:
    """A checkpoint's tensors, all made of the number of its step."""
    return {name: {"x": torch.full((100_000,), float(step))} for name in checkpoint.TENSORS}


def write(folder: Path, step: int, keep: int = 2) -> Path:
    texts = {name: {"step": step} for name in checkpoint.TEXTS}
    return checkpoint.write(folder, step, tensors_of(step), texts, keep)


@pytest.mark.parametrize("name", [f"{n}.safetensors" for n in checkpoint.TENSORS]
                         + [f"{n}.json" for n in checkpoint.TEXTS] + ["manifest.json"])  # fmt: skip
@pytest.mark.parametrize("how", ["flipped", "truncated", "missing"])
def test_a_damaged_checkpoint_is_passed_over(tmp_path, capsys, name, how):
    good, bad = write(tmp_path, 10), write(tmp_path, 20)
    data = bytearray((bad / name).read_bytes())
    data[len(data) // 2] ^= 1
    if how == "truncated":
        data = data[: len(data) // 2]
    (bad / name).unlink()
    if how != "missing":
        (bad / name).write_bytes(data)
    assert checkpoint.newest(tmp_path) == good
    said = capsys.readouterr().out
    assert str(bad) in said and (name in said or name == "manifest.json" and how == "flipped")
    (good / "state.json").unlink()
    with pytest.raises(UserError, match="all 2 checkpoints"):
        checkpoint.newest(tmp_path)


def test_the_last_ones_are_kept_and_the_good_one_always(tmp_path):
    for step in (5, 10, 15):
        write(tmp_path, step, keep=2)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["step_00000010", "step_00000015"]
    (tmp_path / "step_00000015/state.json").unlink()
    write(tmp_path, 12, keep=1)  # gone on from 10, since 15 is damaged
    assert [p.name for p in tmp_path.iterdir()] == ["step_00000012"]


def test_what_is_renamed_is_on_the_disk(tmp_path, monkeypatch):
    """A checkpoint's files, then its folder, then the rename, then the folder around it."""
    order, fsync, replace = [], os.fsync, os.replace
    monkeypatch.setattr(os, "fsync", lambda fd: order.append(
        os.path.basename(os.readlink(f"/proc/self/fd/{fd}"))) or fsync(fd))  # fmt: skip
    monkeypatch.setattr(os, "replace", lambda a, b: order.append("rename") or replace(a, b))
    write(tmp_path, 3)
    files = [f"{name}.safetensors" for name in checkpoint.TENSORS]
    files += [f"{name}.json" for name in (*checkpoint.TEXTS, "manifest")]
    assert sorted(order[:7]) == sorted(files)
    assert order[7:] == [".step_00000003.partial", "rename", tmp_path.name]


def test_what_somebody_put_beside_the_checkpoints_stays(tmp_path):
    write(tmp_path, 1)
    shutil.copytree(tmp_path / "step_00000001", tmp_path / "step_best")
    (tmp_path / "step_notes.txt").write_text("mine")
    for step in (2, 3, 4):
        write(tmp_path, step)
    assert {p.name for p in tmp_path.iterdir()} == {
        "step_00000003", "step_00000004", "step_best", "step_notes.txt"
    }  # fmt: skip
    assert checkpoint.newest(tmp_path).name == "step_00000004"


def test_checkpoints_that_are_there_have_their_room(tmp_path, monkeypatch):
    (tmp_path / "old").write_bytes(bytes(10_000))
    usage = shutil._ntuple_diskusage(10**9, 10**9, 500)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    check_room(tmp_path, 10_500, "they")
    with pytest.raises(UserError, match="they take about"):
        check_room(tmp_path, 10_501, "they")


def test_a_run_goes_on_from_the_checkpoint_before_a_damaged_one(call, text_file):
    options = (*SMALL, "--data", str(text_file), "--steps", "9")
    assert call(6, *options, "--out", "one")[0] == 0
    assert call(6, *options, "--out", "two", "--checkpoint-every", "3", "--stop-at", "6")[0] == 0
    path = Path("two/checkpoints/step_00000006/optimizer.safetensors")
    data = bytearray(path.read_bytes())
    data[-5] ^= 4
    path.write_bytes(data)
    code, stdout, _ = call(6, "--out", "two", "--resume")
    assert code == 0 and "optimizer.safetensors is not what was written" in stdout
    assert "going on from two/checkpoints/step_00000003" in stdout
    assert_same_run(Path("one"), Path("two"))


def test_a_full_disk_leaves_the_checkpoint_before(tmp_path):
    """The system refuses to write files beyond a size, as it does when a disk is full."""
    code = f"""
import resource, sys
sys.path[:0] = [{str(ROOT)!r}, {str(ROOT / "tests")!r}]
from pathlib import Path
from common.cli import UserError, duration
from test_6_gpt2_train_hyparam import write
write(Path("c"), 1)
resource.setrlimit(resource.RLIMIT_FSIZE, (300_000, 300_000))
try:
    write(Path("c"), 2)
except UserError as error:
    print(error)
"""
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True
    )
    assert "step 2 can't be written" in done.stdout, done.stderr
    assert [p.name for p in (tmp_path / "c").iterdir()] == ["step_00000001"]
    assert checkpoint.newest(tmp_path / "c").name == "step_00000001"


def test_a_kill_at_any_moment_leaves_a_whole_checkpoint(tmp_path):
    """One process imports torch and then, 20 times, forks a child that writes checkpoints as fast
    as it can and is killed at a random moment."""
    code = f"""
import os, random, signal, sys, time
os.environ["OMP_NUM_THREADS"] = "1"  # a forked child has no other threads
sys.path[:0] = [{str(ROOT)!r}, {str(ROOT / "tests")!r}]
from pathlib import Path
from test_6_gpt2_train_hyparam import write
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
    from common import checkpoint
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
    assert sum(".step" in line for line in found) >= 5, found  # killed while it was writing
    assert "damaged" not in done.stdout


def test_not_a_number_stops_before_the_weights_change(call, text_file, monkeypatch):
    updates = []
    step = torch.optim.AdamW.step

    def counted(*args, **kwargs):
        updates.append(1)
        return step(*args, **kwargs)

    monkeypatch.setattr(torch.optim.AdamW, "step", counted)
    options = (*SMALL, "--data", str(text_file), "--steps", "9", "--checkpoint-every", "1")
    code, stdout, stderr = call(6, *options, "--lr", "1e30", "--warmup-steps", "0", "--out", "run")
    assert code == 2 and stderr.startswith("error: step ") and "lower --lr" in stderr
    last = int(re.search(r"step (\d+): loss", stderr)[1])
    assert len(updates) == last  # one for each step before
    assert max(Path("run/checkpoints").iterdir()).name == f"step_{last:08d}"
    weights = load_file(max(Path("run/checkpoints").iterdir()) / "model.safetensors")
    assert all(tensor.isfinite().all() for tensor in weights.values())


def test_fp16_counts_the_steps_its_scaler_skips(call, text_file):
    options = (*FP16, "--data", str(text_file), "--steps", "6")
    code, stdout, stderr = call(6, *options, "--out", "run")
    assert code == 0, stderr
    state = json.loads(kept(Path("run"))["state.json"])
    skipped = sum("inf" in row[3] or "nan" in row[3] for row in logged(Path("run")))
    assert state["skipped"] == skipped and state["scaler"]["scale"] == 65536 / 2**skipped
    assert ("steps skipped by the gradient scaler" in stdout) == (skipped > 0)


def test_an_existing_folder_is_refused_and_not_touched(call, refused, text_file):
    Path("run").mkdir()
    Path("run/mine.txt").write_text("mine")
    refused("run exists", 6, *SMALL, "--data", str(text_file), "--out", "run")
    assert [p.name for p in Path("run").iterdir()] == ["mine.txt"]
    refused("holds no run", 6, "--out", "run", "--resume")
    refused("holds no run", 6, "--out", "nowhere", "--resume")
    assert not Path("nowhere").exists()


def test_another_model_or_batch_is_another_run(call, refused, text_file):
    options = (*SMALL, "--data", str(text_file), "--steps", "4")
    assert call(6, *options, "--out", "run", "--stop-at", "2")[0] == 0
    resume = ("--out", "run", "--resume")
    refused("has model gpt-nano, not gpt-micro", 6, *resume, "--model", "gpt-micro")
    refused("has total_batch_tokens 128, not 256", 6, *resume, "--total-batch-tokens", "256")
    refused("has block_size 32, not 64", 6, *resume, "--block-size", "64")
    assert call(6, *resume, "--batch-size", "1", "--lr", "1e-3")[0] == 0  # these may change


def test_a_run_does_not_go_backwards(call, refused, text_file):
    options = (*SMALL, "--data", str(text_file), "--steps", "9", "--out", "run")
    assert call(6, *options, "--stop-at", "4")[0] == 0
    before = logged(Path("run"))
    refused("at step 4 already", 6, "--out", "run", "--resume", "--stop-at", "3")
    assert logged(Path("run")) == before
    assert call(6, "--out", "run", "--resume", "--dtype", "float16", "--stop-at", "5")[0] == 0


def test_another_text_is_another_run(call, refused, text_file, tmp_path):
    text = text_file.read_text()
    (tmp_path / "t.txt").write_text(text)
    assert (
        call(6, *SMALL, "--data", "t.txt", "--steps", "3", "--stop-at", "2", "--out", "run")[0] == 0
    )
    (tmp_path / "t.txt").write_text("Another beginning. " + text)
    refused("the run began with a text of", 6, "--out", "run", "--resume")
    (tmp_path / "moved.txt").write_text(text)
    assert call(6, "--out", "run", "--resume", "--data", "moved.txt")[0] == 0


def test_two_processes_do_not_share_a_folder(call, refused, text_file):
    options = (*SMALL, "--data", str(text_file), "--steps", "2", "--out", "run")
    assert call(6, *options)[0] == 0
    with open("run/.lock") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        refused("another process trains in run", 6, "--out", "run", "--resume")


def test_what_a_crash_left_in_the_log_is_no_obstacle(call, refused, text_file):
    options = (*SMALL, "--data", str(text_file), "--steps", "6")
    assert call(6, *options, "--out", "one")[0] == 0
    assert call(6, *options, "--out", "two", "--stop-at", "3")[0] == 0
    with open("two/metrics.csv", "ab") as file:
        file.write(b"3,9.9\0\x80,,,,\nfour,5\n4,,,,,,,,\n")
    assert call(6, "--out", "two", "--resume")[0] == 0
    assert_same_run(Path("one"), Path("two"))
    shutil.rmtree("two/checkpoints")
    Path("two/config.json").write_text("")
    refused("config.json is damaged", 6, "--out", "two", "--resume")


def test_an_export_that_fails_is_made_again(call, refused, text_file, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    options = (*SMALL, "--data", str(text_file), "--steps", "2", "--out", "run")
    with monkeypatch.context() as patch:
        patch.setattr("common.pretrained.to_hugging_face", full)
        refused("--resume exports again", 6, *options)
    Path("run/.hf.old.partial/x").mkdir(parents=True)  # and a kill
    assert call(6, "--out", "run", "--resume")[0] == 0
    assert Path("run/hf/model.safetensors").exists() and not Path("run/.hf.old.partial").exists()


def test_a_log_on_a_full_disk_is_one_line(tmp_path, monkeypatch):
    log = RunLog(tmp_path, "step", "loss")
    monkeypatch.setattr(log, "file", open("/dev/full", "w"))
    log.writer = csv.DictWriter(log.file, ("step", "loss"))
    with pytest.raises(UserError, match="make room"):
        log.row(step=0, loss=1.0)


def test_the_scaler_does_not_skip_for_ever(refused, text_file, monkeypatch):
    monkeypatch.setattr("common.optim.nn.utils.clip_grad_norm_", lambda *_: torch.tensor(math.inf))
    options = (*FP16, "--data", str(text_file), "--steps", "60", "--out", "run")
    refused("26 times in a row", 6, *options)


@pytest.mark.parametrize("seconds, words", [(7, "7 s"), (89, "89 s"), (95, "1.6 min"),
                                            (3599, "60 min"), (7200, "2.0 h")])  # fmt: skip
def test_durations_are_said_as_one_would(seconds, words):
    assert duration(seconds) == words


def test_a_run_killed_before_its_first_checkpoint_starts_again(call, text_file):
    options = (*SMALL, "--data", str(text_file), "--steps", "3")
    assert call(6, *options, "--out", "one")[0] == 0
    assert call(6, *options, "--out", "two")[0] == 0
    shutil.rmtree("two/checkpoints")
    shutil.rmtree("two/hf")
    code, stdout, _ = call(6, "--out", "two", "--resume")
    assert code == 0 and "no checkpoint yet" in stdout
    assert_same_run(Path("one"), Path("two"))


def test_bad_input(refused, text_file, monkeypatch, tmp_path):
    data = ("--data", str(text_file))
    refused("no multiple of 2 × 32", 6, *SMALL, *data, "--total-batch-tokens", "100")
    refused("ranks: give 64", 6, *SMALL, *data, "--total-batch-tokens", "3")
    refused("--lr is 0", 6, *SMALL, *data, "--lr", "0")
    refused("--lr is nan", 6, *SMALL, *data, "--lr", "nan")
    refused("--clip is -1", 6, *SMALL, *data, "--clip", "-1")
    refused("--dropout is 1", 6, *SMALL, *data, "--dropout", "1")
    refused("--keep is 0", 6, *SMALL, *data, "--keep", "0")
    refused("--stop-at is 0", 6, *SMALL, *data, "--stop-at", "0")
    refused("--recipe gpt4 is none of laptop", 6, *data, "--recipe", "gpt4")
    refused("no preset is called", 6, *SMALL, *data, "--model", "gpt5")
    refused("start it with torchrun", 6, *SMALL, *data, "--shard")
    refused("brings its own model", 6, *SMALL, *data, "--init-from", "gone")
    (tmp_path / "wrong.toml").write_text("learning_rate = 1\n")
    refused("--learning-rate", 6, *data, "--recipe", "wrong.toml")
    wrong = {
        "steps = 2.5": "--steps", "attention = 'foo'": "--attention",
        "batch_size = true": "--batch", "compile = true": "--compile",
        "dtype = 'int8'": "--dtype", "lr = 'x'": "--lr",
        "out = 'x'": "wrong.toml has out", "lr = -1": "--lr is -1",
    }  # fmt: skip
    for line, words in wrong.items():
        (tmp_path / "wrong.toml").write_text(line + "\n")
        refused(words, 6, *SMALL[2:4], *data, "--recipe", "wrong.toml")
    refused("--warmup-steps is -1", 6, *SMALL, *data, "--warmup-steps", "-1")
    for decay in ("-1.0", "nan", "inf"):
        refused(f"--weight-decay is {decay}", 6, *SMALL, *data, "--weight-decay", decay)
    refused("--prompt is empty", 6, *SMALL, *data, "--prompt", "")
    refused("--recipe  is none of", 6, *data, "--recipe", "")
    usage = shutil._ntuple_diskusage(10**9, 10**9, 1000)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    refused("has room for 0.0", 6, *SMALL, *data)
    assert not Path("runs").exists()


# Many processes


def torchrun(*options, cwd, n=2):
    command = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        f"--nproc_per_node={n}",
    ]
    return subprocess.run(
        [*command, str(SCRIPTS[6]), *options], cwd=cwd, capture_output=True, text=True, timeout=120,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )  # fmt: skip


@pytest.fixture(scope="module")
def one_process(text_file, tmp_path_factory):
    """A run of 8 steps in one process that accumulates two micro-batches, on one thread."""
    folder = tmp_path_factory.mktemp("one")
    options = (*SMALL, "--data", str(text_file), "--steps", "8", "--checkpoint-every", "4")
    threads, script = torch.get_num_threads(), load_script(6)
    torch.set_num_threads(1)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        run(script.main, script.Options, [*options, "--out", "run"])
    torch.set_num_threads(threads)
    return folder / "run", options


def killed_halfway(run: Path, copy: Path) -> None:
    """The folder as a kill between steps 4 and 8 would have left it."""
    shutil.copytree(run, copy)
    shutil.rmtree(copy / "checkpoints/step_00000008")
    shutil.rmtree(copy / "hf")


def test_two_ranks_are_one_process_that_accumulates(one_process, tmp_path):
    one, options = one_process
    done = torchrun(*options, "--out", "two", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "128 tokens a step: 2 × 32 a micro-batch, × 1 accumulated, × 2 ranks" in done.stdout
    assert done.stdout.count("step    3  loss") == 1  # rank 0 alone prints
    assert logged(tmp_path / "two") == logged(one)
    files, others = kept(one), kept(tmp_path / "two")
    assert files["model.safetensors"] == others["model.safetensors"]
    assert files["optimizer.safetensors"] == others["optimizer.safetensors"]
    random = load_file(tmp_path / "two/checkpoints/step_00000008/random.safetensors")
    assert not torch.equal(random["0/cpu"], random["1/cpu"])  # each rank drops others


def test_a_run_goes_on_with_another_number_of_ranks(one_process, tmp_path):
    one, _ = one_process
    killed_halfway(one, tmp_path / "two")
    done = torchrun("--resume", "--out", "two", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "generators start anew" in done.stdout
    assert logged(tmp_path / "two") == logged(one)
    assert kept(one)["model.safetensors"] == kept(tmp_path / "two")["model.safetensors"]


def test_sharded_is_the_same_to_rounding(one_process, tmp_path):
    one, options = one_process
    done = torchrun(*options, "--out", "new", "--shard", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    killed_halfway(one, tmp_path / "two")
    done = torchrun("--resume", "--out", "two", "--shard", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    for name in ("new", "two"):
        for row, other in zip(logged(one), logged(tmp_path / name), strict=True):
            for a, b in zip(row, other, strict=True):
                assert a == b or float(a) == pytest.approx(float(b), rel=1e-4)
        assert kept(one).keys() == kept(tmp_path / name).keys()
        assert (tmp_path / name / "hf/model.safetensors").exists()


def children(pid: int) -> list[int]:
    """The ranks that torchrun started."""
    found = subprocess.run(["pgrep", "-P", str(pid)], capture_output=True, text=True)
    return [int(line) for line in found.stdout.split()]


TORCHRUN = (sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2")


def test_a_signal_to_one_rank_stops_all(text_file, tmp_path):
    options = (*SMALL, "--data", str(text_file), "--steps", "100000", "--out", "run")
    process = started(6, *options, cwd=tmp_path, until="step    5", command=TORCHRUN)
    os.kill(children(process.pid)[1], signal.SIGTERM)
    stdout, stderr = process.communicate(timeout=60)
    assert process.returncode == 0, stderr
    assert "--resume goes on" in stdout
    assert checkpoint.newest(tmp_path / "run/checkpoints") is not None


def test_a_signal_to_torchrun_leaves_a_checkpoint(text_file, tmp_path):
    """torchrun itself then ends with another code than 0; the ranks have done their part."""
    options = (*SMALL, "--data", str(text_file), "--steps", "100000", "--out", "run")
    process = started(6, *options, cwd=tmp_path, until="step    5", command=TORCHRUN)
    process.send_signal(signal.SIGTERM)
    stdout, _ = process.communicate(timeout=60)
    assert "--resume goes on" in stdout
    path = checkpoint.newest(tmp_path / "run/checkpoints")
    assert checkpoint.read(path)["state"]["step"] == sum(
        bool(r[1]) for r in logged(tmp_path / "run")
    )


def test_a_rank_that_dies_ends_the_job(text_file, tmp_path):
    options = (*SMALL, "--data", str(text_file), "--steps", "100000", "--out", "run")
    process = started(6, *options, cwd=tmp_path, until="step    5", command=TORCHRUN)
    ranks = children(process.pid)
    os.kill(ranks[1], signal.SIGKILL)
    process.communicate(timeout=60)
    assert process.returncode != 0
    assert not any(Path(f"/proc/{pid}").exists() for pid in ranks)


def test_a_mistake_under_torchrun_is_said_once(text_file, tmp_path):
    done = torchrun(*SMALL, "--data", str(text_file), "--lr", "0", cwd=tmp_path)
    assert done.returncode != 0 and done.stderr.count("error: --lr is 0") == 1
