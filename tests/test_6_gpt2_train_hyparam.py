"""Stage 6: GPT-3's five, each by hand, and the script as a user runs it."""

import csv
import math
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import load_script, run_script
from transformers import GPT2LMHeadModel

from common.data import Batches, load_tokens
from common.init import init_weights, tie_weights
from common.kit.measure import adamw_ms
from common.ladder import Rung
from common.model import GPT, GPTConfig
from common.optim import adamw, learning_rate, parameter_groups, set_lr
from common.speed import Setting

TINY = GPTConfig(n_layer=2, n_head=2, n_embd=32, block_size=32, vocab_size=500)
SMALL = ("--model", "1x1x16", "--batch-size", "2", "--block-size", "16", "--total-batch-tokens",
         "64", "--dtype", "float32", "--attention", "formula", "--compile", "no")  # fmt: skip


def small_model():
    return init_weights(tie_weights(GPT(TINY)), 1)


class Log:
    """A log that keeps what it is told."""

    def __init__(self):
        self.rows = []

    def row(self, **values):
        self.rows.append(values)

    def val(self, step, val_loss):
        self.val_loss = val_loss


def trained(options, setting=Setting(), model=None):  # noqa: B008, it is frozen
    """A model after some steps of the script's train, and the log of them."""
    script, model, log = load_script(6), model or small_model(), Log()
    batches = Batches(np.arange(2000) * 7 % 500, options.pop("batch_size", 2), 16)
    given = script.Options(batch_size=batches.B, block_size=16, **options)
    script.train(model, batches, torch.arange(100) * 3 % 500, log, given, setting)
    return model, log


# The learning rate


@pytest.mark.parametrize(
    "step, expected",
    [
        (0, 0.25), (1, 0.5), (3, 1.0), (4, 1.0), (8, 0.1 + 0.45 * (1 + 0.5**0.5)), (12, 0.55),
        (20, 0.1), (21, 0.1), (30, 0.1), (36, 0.1), (39, 0.1), (999, 0.1),
    ],
)  # fmt: skip
def test_the_schedule_by_hand(step, expected):
    assert learning_rate(step, 1.0, warmup_steps=4, steps=20) == pytest.approx(expected, rel=1e-12)


def test_the_schedule_without_warm_up_starts_at_the_maximum():
    assert learning_rate(0, 3e-4, warmup_steps=0, steps=10) == 3e-4
    assert learning_rate(0, 3e-4, warmup_steps=10, steps=10) == pytest.approx(3e-5)


def test_every_group_gets_the_learning_rate():
    optimizer = adamw(parameter_groups(small_model(), 0.1), lr=1.0)
    set_lr(optimizer, 0.25)
    assert [group["lr"] for group in optimizer.param_groups] == [0.25, 0.25]


# What decays, and AdamW


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


def test_timing_adamws_forms_leaves_the_model_as_it_was():
    model = small_model()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    found = adamw_ms(model)
    assert list(found) == ["for-loop", "foreach", "fused"] and min(found.values()) > 0
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert all(p.grad is None for p in model.parameters())


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


# The loop


def test_three_steps_by_hand():
    """Two micro-batches, a clip that takes effect, the schedule, AdamW: the same weights bit for
    bit, and what is logged."""
    options = {"steps": 3, "lr": 1e-2, "warmup_steps": 2, "clip": 0.5, "weight_decay": 0.3}
    model, log = trained(options | {"total_batch_tokens": 64})
    twin, batches = small_model(), Batches(np.arange(2000) * 7 % 500, 2, 16)
    decay, rest = ([p for p in twin.parameters() if (p.dim() == 2) == two] for two in (True, False))
    groups = [{"params": decay, "weight_decay": 0.3}, {"params": rest, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, betas=(0.9, 0.95), eps=1e-8, fused=True)
    for row, lr in zip(log.rows, (0.5e-2, 1e-2, 1e-2), strict=True):  # the cosine's first is 1
        for group in optimizer.param_groups:
            group["lr"] = lr
        losses = []
        for _ in range(2):
            loss = twin(*next(batches))[1]
            (loss / 2).backward()
            losses.append(loss.item())
        norm = torch.stack([p.grad.square().sum() for p in twin.parameters()]).sum().sqrt().item()
        assert torch.nn.utils.clip_grad_norm_(twin.parameters(), 0.5) > 0.5
        optimizer.step()
        optimizer.zero_grad()
        assert row["lr"] == lr and row["loss"] == pytest.approx(sum(losses) / 2, rel=1e-6)
        assert row["norm"] == pytest.approx(norm, rel=1e-5)  # before clipping
        assert row["tokens_per_s"] == pytest.approx(64 / row["ms"] * 1000)
    for (name, ours), theirs in zip(model.named_parameters(), twin.parameters(), strict=True):
        assert torch.equal(ours, theirs), name


def test_accumulated_gradients_are_those_of_the_big_batch():
    """Four micro-batches of 2 and one batch of 8: the same loss, and the same weights after it."""
    options = {"steps": 2, "lr": 1e-3, "total_batch_tokens": 128}
    big, one = trained(options | {"batch_size": 8})
    small, four = trained(options | {"batch_size": 2})
    for a, b in zip(one.rows, four.rows, strict=True):
        assert a["loss"] == pytest.approx(b["loss"], rel=1e-6)
        assert a["norm"] == pytest.approx(b["norm"], rel=1e-4)
    for a, b in zip(big.parameters(), small.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


def test_with_everything_off_the_loop_is_stage_5s():
    """Off is identity: no decay, no clipping, a constant learning rate, one micro-batch, PyTorch's
    betas, on stage 5's rung 6. Stage 5's AdamW decays everything by 0.01 · lr: none here."""
    neutral = {"steps": 3, "lr": 1e-3, "warmup_steps": 0, "clip": math.inf, "weight_decay": 0.0,
               "betas": (0.9, 0.999), "total_batch_tokens": 32}  # fmt: skip
    with pytest.MonkeyPatch.context() as patch:
        usual = torch.optim.AdamW
        patch.setattr(torch.optim, "AdamW", lambda *a, **k: usual(*a, **{"weight_decay": 0.0} | k))
        patch.setattr("common.optim.math.cos", lambda x: 1.0)  # the cosine stays at its top
        ours, log = trained(neutral)
        script, model, rung = load_script(5), small_model(), Rung("0 fp32")
        options = script.Options(steps=3, lr=1e-3, block_size=16)
        batches = Batches(np.arange(2000) * 7 % 500, 2, 16)
        val = torch.arange(100) * 3 % 500
        script.train(model, batches, val, rung, options, Setting(fused=True))
    assert rung.loss == log.rows[0]["loss"] and rung.val_loss == log.val_loss
    for (name, a), b in zip(ours.named_parameters(), model.parameters(), strict=True):
        assert torch.equal(a, b), name


def test_16_bits_are_used_and_their_gradients_are_unscaled_then_clipped():
    moves = {}
    for dtype in (None, torch.bfloat16, torch.float16):
        options = {"steps": 1, "lr": 1e-3, "warmup_steps": 0, "clip": 0.5, "total_batch_tokens": 32}
        model, log = trained(options, replace(Setting(), dtype=dtype))
        moves[dtype] = log.rows[0]["loss"], log.rows[0]["norm"]
        assert log.rows[0]["norm"] > 0.5
    for dtype in (torch.bfloat16, torch.float16):
        assert moves[dtype] != moves[None] and moves[dtype] == pytest.approx(moves[None], rel=0.02)


# The script


def test_the_script_as_a_user_runs_it(text_file, tmp_path):
    options = (*SMALL, "--steps", "20", "--lr", "2e-2", "--warmup-steps", "3", "--clip", "1")
    done = run_script(6, "--data", str(text_file), *options, cwd=tmp_path)
    assert done.returncode == 0 and done.stderr == "", done.stderr
    assert max(map(len, done.stdout.splitlines())) <= 80
    folder = tmp_path / "runs/6_hyparam"
    assert {p.name for p in folder.iterdir()} == {".lock", "metrics.csv", "metrics.png", "hf"}
    with (folder / "metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    steps = [row for row in rows if row["loss"]]
    printed = re.findall(r"^step +(\d+)  loss +([\d.]+)", done.stdout, re.M)
    assert [(int(s), float(x)) for s, x in printed] == [
        (int(row["step"]), round(float(row["loss"]), 4)) for row in steps
    ]
    before, after = (float(row["val_loss"]) for row in rows if row["val_loss"])
    assert after < before - 1 and f"  loss {after:.4f}" in done.stdout
    # what each did, as the log has it
    last = f"{learning_rate(19, 2e-2, 3, 20):.1e}"
    assert f"learning rate  up from 6.7e-03 to 2.0e-02, then down to {last}" in done.stdout
    norms = [float(row["norm"]) for row in steps]
    clipped = sum(norm > 1 for norm in norms)
    assert f"{clipped} of 20 steps; largest norm {max(norms):.2f}" in done.stdout
    assert re.search(r"for-loop [\d.]+, foreach [\d.]+, fused [\d.]+ ms per update", done.stdout)
    assert 0 < clipped < 20
    assert "weight decay   0.1 for 808,192 weights, 0 for 240" in done.stdout
    assert re.findall(r"^ +(\d) +[\d.]+ +±\d+% +[\d,]+$", done.stdout, re.M) == ["1", "4"]

    # Hugging Face's model of hf/ has the validation loss that was logged
    val = torch.from_numpy(load_tokens(str(text_file)).val.astype("int64"))
    reference = GPT2LMHeadModel.from_pretrained(folder / "hf")
    assert reference.config.vocab_size == 50257
    with torch.no_grad():
        losses = [
            reference(val[None, i : i + 17][:, :-1]).logits[0].log_softmax(-1)
            .gather(-1, val[i + 1 : i + 17, None])
            for i in range(0, len(val) - 1, 16)
        ]  # fmt: skip
    assert -torch.cat(losses).mean().item() == pytest.approx(after, abs=2e-3)


def test_bad_input(refused, text_file):
    data = (*SMALL, "--data", str(text_file))
    refused("not a multiple of 2 × 16 tokens: give 96", 6, *data, "--total-batch-tokens", "100")
    refused("give 32", 6, *data, "--total-batch-tokens", "3")
    refused("--total-batch-tokens is 0", 6, *data, "--total-batch-tokens", "0")
    short = ("--steps", "3", "--warmup-steps", "9")
    refused("a warm-up of 9 steps is longer than --steps 3", 6, *data, *short)
    refused("--clip is -1", 6, *data, "--clip", "-1")
    refused("--warmup-steps is -1", 6, *data, "--warmup-steps", "-1")
    for decay in ("-1.0", "nan", "inf"):
        refused(f"--weight-decay is {decay}", 6, *data, "--weight-decay", decay)
    refused("--prompt is empty", 6, *data, "--prompt", "")
    refused("--lr is nan", 6, *data, "--lr", "nan")
    refused("--dtype: invalid choice: 'int8'", 6, *data, "--dtype", "int8")
    refused("fewer than a batch", 6, *data, "--block-size", "2000", "--total-batch-tokens", "4000")
    assert not Path("runs").exists()
