"""Stage 5: each rung is the same model, and the ladder's arithmetic is right."""

import json
import math
import os
import re
import signal
import subprocess
import sys
import time
from dataclasses import replace

import pytest
import torch
from conftest import SCRIPTS, load_script, run_script, started
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from common import bench
from common.bench import Ladder, PeakMemory, Row, attention_gain, matmul_peak, timed
from common.device import keep_freed_memory, release_memory
from common.init import init_weights, tie_weights
from common.model import GPT, GPTConfig, causal_attention
from common.pretrained import as_hugging_face
from common.speed import autocast, autocast_dtype, flash_attention, pad_vocab, why_not_tf32

CPU = torch.device("cpu")
TINY = GPTConfig(n_layer=2, n_head=2, n_embd=32, block_size=32, vocab_size=50257)
SMALL = ("--model", "gpt-nano", "--batch-size", "2", "--block-size", "32", "--steps", "2")


@pytest.mark.parametrize("shape", [(2, 3, 17, 8), (1, 1, 1, 4), (4, 2, 64, 16)])
def test_flash_is_plain_forward_and_backward(shape):
    torch.manual_seed(0)
    results = []
    inputs = torch.randn(3, *shape).double()
    for attention in (causal_attention, flash_attention):
        qkv = inputs.clone().requires_grad_()
        out = attention(*qkv)
        out.square().sum().backward()
        results.append((out, qkv.grad))
    torch.testing.assert_close(results[0], results[1])


def test_flash_drops_when_told():
    q = torch.randn(1, 2, 8, 4)
    assert not torch.equal(flash_attention(q, q, q, 0.5), flash_attention(q, q, q))


@pytest.mark.parametrize("tied", [True, False])
def test_padding_keeps_logits_and_gradients(tied):
    torch.manual_seed(0)
    model = GPT(replace(TINY, vocab_size=1000))
    model = init_weights(tie_weights(model) if tied else model, 1)
    idx = torch.randint(1000, (2, 16))
    logits, loss = model(idx, idx)
    padded = pad_vocab(model)
    assert padded.config.vocab_size == 1024 and padded is model
    assert padded.transformer.wte.num_embeddings == padded.lm_head.out_features == 1024
    assert (padded.lm_head.weight is padded.transformer.wte.weight) == tied
    wide, wide_loss = padded(idx, idx)
    assert torch.equal(wide[..., :1000], logits)
    torch.testing.assert_close(wide[..., 1000:], logits.mean(-1, True).expand(-1, -1, 24))
    assert 0 < wide_loss - loss < math.log(1 + 24 / 1000)
    wide_loss.backward()
    assert padded.lm_head.weight.grad.shape == (1024, 32)


def test_padding_hardly_changes_the_loss_of_any_weights():
    """Not even where all logits are far from 0, as a trained model's are."""
    model = tie_weights(GPT(replace(TINY, vocab_size=1000)))
    with torch.no_grad():
        model.transformer.wte.weight.normal_(-1, 0.5)
        model.transformer.ln_f.bias.fill_(1)
    idx = torch.arange(16)[None]
    logits, loss = model(idx, idx)
    assert logits.max() < -10
    assert 0 <= pad_vocab(model)(idx, idx)[1] - loss < math.log(1 + 24 / 1000)


def test_padding_to_50304_and_by_nothing():
    assert pad_vocab(GPT(TINY)).config.vocab_size == 50304
    model = GPT(replace(TINY, vocab_size=1024))
    before = model.lm_head.weight
    assert pad_vocab(model).lm_head.weight is before
    assert pad_vocab(model, 1).config.vocab_size == 1024


def test_flash_holds_no_scores():
    """The formula makes a (T, T) matrix; the kernel must not."""
    shapes = []

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            out = func(*args, **(kwargs or {}))
            shapes.extend(tuple(t.shape) for t in tree_leaves(out) if isinstance(t, torch.Tensor))
            return out

    q = torch.randn(1, 2, 64, 4)
    for attention, made in ((causal_attention, True), (flash_attention, False)):
        shapes.clear()
        with Watch():
            attention(q, q, q)
        assert any(shape[-2:] == (64, 64) for shape in shapes) == made


def test_autocast_off_is_fp32_and_on_is_near():
    torch.manual_seed(0)
    model, idx = init_weights(GPT(TINY), 1), torch.randint(50257, (2, 32))
    loss = model(idx, idx)[1]
    with autocast(CPU, None):
        assert torch.equal(model(idx, idx)[1], loss)
    with autocast(CPU, torch.bfloat16):
        logits, near = model(idx, idx)
    assert logits.dtype is torch.bfloat16
    assert abs(near - loss) < 0.01


@pytest.mark.parametrize(
    "features, dtype",
    [({"avx512_bf16": True}, torch.bfloat16), ({"amx_bf16": True}, torch.bfloat16),
     ({"bf16": True}, torch.bfloat16), ({"avx512_bf16": False}, None), ({}, None)],
)  # fmt: skip
def test_16_bits_only_where_they_are_native(monkeypatch, features, dtype):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: features)
    assert autocast_dtype(CPU) is dtype


@pytest.mark.parametrize("capability, dtype", [((7, 5), torch.float16), ((8, 0), torch.bfloat16)])
def test_gpus_before_ampere_take_fp16_and_no_tf32(monkeypatch, capability, dtype):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    device = torch.device("cuda")
    assert autocast_dtype(device) is dtype
    assert (why_not_tf32(device) is None) == (dtype is torch.bfloat16)


def test_hugging_faces_row_has_our_loss_and_gradient():
    torch.manual_seed(0)
    model = init_weights(tie_weights(GPT(TINY)), 1)
    theirs = as_hugging_face(model).train()
    assert theirs.lm_head.weight is theirs.transformer.wte.weight
    x, y = torch.randint(50257, (2, 2, 32))
    ours, loss = model(x, y)[1], theirs(x, labels=y, shift_labels=y).loss
    torch.testing.assert_close(ours, loss)
    ours.backward()
    loss.backward()
    torch.testing.assert_close(
        model.transformer.wte.weight.grad, theirs.transformer.wte.weight.grad, rtol=1e-3, atol=1e-6
    )


def row(name, *ms, loss=10.0, dtype="float32"):
    return Row(name, [x / 1000 for x in ms], loss, dtype, first_step=3.0, peak_bytes=2 * 10**9)


def test_the_arithmetic_of_the_ladder(capsys):
    ladder = Ladder(TINY, B=4, T=32, device=CPU)
    ladder.peaks = {(torch.float32, "highest"): 1e12, (torch.bfloat16, "highest"): 4e12}
    first = ladder.add(row("0 fp32", 190, 200, 240))
    second = ladder.add(row("2 autocast", 100, loss=10.004, dtype="bfloat16"), first)
    third = ladder.add(row("3 attention", 80, dtype="bfloat16"), second)
    assert first.ms == pytest.approx(200) and first.spread == pytest.approx(0.125)
    assert first.tokens_per_s == pytest.approx(640)
    assert (first.times_previous, first.times_first) == (None, 1)
    assert second.times_previous == second.times_first == pytest.approx(2)
    assert third.times_previous == pytest.approx(1.25)
    assert third.times_first == pytest.approx(2.5)
    assert first.mfu == pytest.approx(TINY.flops_per_token(32) * 640 / 1e12)
    assert second.mfu == pytest.approx(TINY.flops_per_token(32) * 1280 / 4e12)
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 4 and max(map(len, lines)) <= 80
    assert lines[2].split()[2:] == ["100.0", "±0.0%", "1,280", "2.00", "2.00",
                                    f"{second.mfu:.1%}", "2.0", "+0.0040"]  # fmt: skip


@pytest.mark.parametrize("last, words", [(205, None), (100, "same work"), (400, "same work"),
                                         (0.01, "of the peak")])  # fmt: skip
def test_a_busy_machine_is_said(last, words):
    ladder = Ladder(TINY, B=4, T=32, device=CPU)
    ladder.peaks = {(torch.float32, "highest"): 1e12}
    for ms in (200, 80, last):
        ladder.add(row("0 fp32", ms))
    why = ladder.why_not_believe()
    assert why is None if words is None else words in why


def test_a_rung_with_another_loss_does_not_count():
    ladder = Ladder(TINY, B=4, T=32, device=CPU)
    ladder.peaks = {(torch.float32, "highest"): 1e12}
    ladder.add(row("0 fp32", 200))
    for wrong in (10.03, 9.97, math.nan):
        with pytest.raises(AssertionError, match="loss"):
            ladder.add(row("1 wrong", 1, loss=wrong))
    assert len(ladder.rows) == 1


def test_the_device_is_waited_for_around_the_work_and_not_within(monkeypatch):
    order = []
    monkeypatch.setattr(bench, "synchronize", lambda device: order.append("wait"))
    monkeypatch.setattr(bench.time, "perf_counter", lambda: order.append("clock") or len(order))
    timed(lambda: order.append("work"), CPU)
    assert order == ["wait", "clock", "work", "wait", "clock"]


def test_two_steps_warm_up_and_do_not_count(monkeypatch):
    script, seconds = load_script(5), iter(range(10, 20))
    monkeypatch.setattr(script, "timed", lambda work, device: (next(seconds), work()))
    batches = [tuple(torch.randint(50257, (2, 1, 8))) for _ in range(5)]
    model = init_weights(GPT(TINY), 1)
    loss_of = lambda x, y: model(x, y)[1]  # noqa: E731
    row = script.time_steps("row", model, loss_of, batches, script.Setting(), CPU, 1e-3)
    assert row.seconds == [12, 13, 14] and row.first_step == 10


@pytest.mark.parametrize("takes, calls", [
    (lambda value: True, [(-3, 2**31 - 1), (-1, -1)]),
    (lambda value: value <= 2**25, [(-3, 2**31 - 1), (-3, 2**25), (-1, -1)]),  # before 2.35
    (lambda value: False, [(-3, 2**31 - 1), (-3, 2**25)]),
])  # fmt: skip
def test_glibc_is_asked_for_what_it_takes(monkeypatch, takes, calls):
    asked = []

    class Libc:
        def mallopt(self, parameter, value):
            asked.append((parameter, value))
            return int(takes(value))

    monkeypatch.setattr("common.device.sys.platform", "linux")
    monkeypatch.setattr("common.device.platform.libc_ver", lambda: ("glibc", "2.35"))
    monkeypatch.setattr("common.device.ctypes.CDLL", lambda name: Libc())
    keep_freed_memory()
    assert asked == calls


def test_timing_and_peaks_are_of_this_world():
    seconds, result = timed(lambda: time.sleep(0.05) or 7, CPU)
    assert result == 7 and 0.05 <= seconds < 0.5
    peak = matmul_peak(CPU, torch.float32)
    n = 1024
    a = torch.randn(n, n)
    usual = 2 * n**3 / sorted(timed(lambda: a @ a, CPU)[0] for _ in range(5))[2]
    assert usual / 3 < peak < usual * 3
    assert 0.05 < attention_gain((2, 2, 64, 16), torch.float32, CPU) < 50


@pytest.mark.skipif(not os.path.exists("/proc/self/clear_refs"), reason="Linux counts")
def test_peak_memory_forgets_what_was_before():
    keep_freed_memory()  # as every script on a CPU does
    big = torch.ones(2**26)  # 256 MiB
    del big
    release_memory()
    memory = PeakMemory(CPU)
    before = memory.read()
    big = torch.ones(2**26)
    assert memory.read() - before > 2**27, big.shape


def test_every_rung_is_the_same_model():
    """The loss of the first step, rung by rung, within bf16's rounding."""
    script = load_script(5)
    x, y = torch.randint(50257, (2, 2, 32), generator=torch.Generator().manual_seed(0))
    setting, losses = script.Setting(), []
    for name, change, *_ in script.RUNGS:
        setting = replace(setting, **change)
        model = script.build(TINY, replace(setting, compiled=False), seed=1)
        loss_of = lambda x, y, model=model: model(x, y)[1]  # noqa: E731
        result = script.time_steps(name, model, loss_of, [(x, y)] * 3, setting, CPU, 3e-4)
        losses.append(result.loss)
    assert losses[0] == losses[1]  # TF32 changes nothing on a CPU
    assert max(losses) - min(losses) < 0.005
    assert [name for name, *_ in script.RUNGS] == [
        "fp32", "TF32", "autocast", "attention", "vocabulary", "compile"
    ]  # fmt: skip


def test_the_step_clips_and_steps_like_fused_adamw_by_hand():
    script = load_script(5)
    model = script.build(TINY, script.Setting(), seed=1)
    twin = script.build(TINY, script.Setting(), seed=1)
    x, y = torch.randint(50257, (2, 2, 32), generator=torch.Generator().manual_seed(0))
    script.time_steps("x", model, lambda x, y: model(x, y)[1], [(x, y)] * 3, script.Setting(),
                      CPU, 1e-3)  # fmt: skip
    optimizer = torch.optim.AdamW(twin.parameters(), lr=1e-3)  # the for-loop
    for _ in range(3):
        twin(x, y)[1].backward()
        norm = torch.stack([p.grad.square().sum() for p in twin.parameters()]).sum().sqrt()
        for p in twin.parameters():
            p.grad *= min(1.0, 1.0 / (norm.item() + 1e-6))
        optimizer.step()
        optimizer.zero_grad()
    for ours, theirs in zip(model.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=2e-5)


def test_the_whole_ladder_as_a_user_runs_it(text_file, tmp_path):
    done = run_script(
        5, *SMALL, "--data", str(text_file), "--json", "l.json", "--device", "cpu", cwd=tmp_path
    )
    assert done.returncode == 0 and done.stderr == "", done.stderr
    for words in ("0 fp32", "1 TF32", "skipped", "Hugging Face", "0 fp32, again", "drift",
                  "2.3×·1.05×", "to go, less"):  # fmt: skip
        assert words in done.stdout
    assert max(map(len, done.stdout.splitlines())) <= 90
    result = json.loads((tmp_path / "l.json").read_text())
    rows = [r for r in result["rows"] if r["seconds"]]
    assert all(len(r["seconds"]) == 2 and 0 < r["mfu"] < 1 for r in rows)
    assert all(abs(r["loss"] - rows[0]["loss"]) < 0.02 for r in rows)
    assert rows[-1]["loss"] == rows[0]["loss"]
    rounded = [r for r in rows if r["name"].startswith("2")]
    assert all(r["loss"] != rows[0]["loss"] for r in rounded)  # 16 bits were really used
    compiled = [r for r in rows if r["name"].startswith(("5", "Hugging"))]
    assert all(r["first_step"] > 3 * min(r["seconds"]) for r in compiled)  # it did compile
    assert {p.name for p in (tmp_path / "runs/5_speedup").iterdir()} == {"ladder.png"}


@pytest.mark.usefixtures("quick_peak")
def test_upto_and_only(call, text_file):
    data = ("--data", str(text_file))
    code, stdout, _ = call(5, *SMALL, *data, "--upto", "0")
    names = re.findall(r"^(\d \w+)  +\d+\.\d", stdout, re.M)
    assert code == 0 and names == ["0 fp32"] and "0 fp32, again" in stdout
    code, stdout, _ = call(5, *SMALL, *data, "--only", "4")
    assert re.findall(r"^(\d \w+)  +\d+\.\d", stdout, re.M) == ["0 fp32", "4 vocabulary"]
    assert "Hugging Face" not in stdout


def test_without_a_compiler_the_rung_is_skipped(text_file, tmp_path):
    """No C++ compiler: a reason in the table, not a crash."""
    env = {"CXX": "no-such-compiler", "TORCHINDUCTOR_CACHE_DIR": str(tmp_path / "cache")}
    code = (
        "import torch; from common.speed import why_not_compile as w; print(w(torch.device('cpu')))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=SCRIPTS[5].parent, env=os.environ | env,
        capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "no-such-compiler" in done.stdout and done.stdout.count("\n") == 1


def test_ctrl_c_keeps_what_was_measured(text_file, tmp_path):
    options = ("--data", str(text_file), *SMALL, "--steps", "30")
    process = started(5, *options, cwd=tmp_path, until="0 fp32  ")
    time.sleep(0.3)
    process.send_signal(signal.SIGINT)
    stdout, stderr = process.communicate(timeout=60)
    assert process.returncode == 130 and "Traceback" not in stderr, stderr
    assert "kept: " in stdout
    assert [p.name for p in (tmp_path / "runs/5_speedup").iterdir()] == ["ladder.png"]


def test_a_model_too_large_for_the_device_is_one_line(refused, text_file, monkeypatch):
    def full(*_):
        raise torch.OutOfMemoryError

    monkeypatch.setattr(bench, "timed", full)
    monkeypatch.setattr("torch.optim.AdamW.step", full)
    refused("the memory is full", 5, *SMALL, "--data", str(text_file))


@pytest.mark.parametrize("gib, rows", [(6, 1), (8, 2), (24, 8), (80, 16)])
def test_the_default_batch_fits_the_gpu(monkeypatch, gib, rows):
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (0, gib * 2**30))
    assert load_script(5).rows_that_fit(torch.device("cuda")) == rows


def test_bad_input(refused, text_file):
    data = ("--data", str(text_file))
    refused("--upto 6 is no rung", 5, *data, "--upto", "6")
    refused("--only -1 is no rung", 5, *data, "--only", "-1")
    refused("--batch-size is 0", 5, *data, "--batch-size", "0")
    refused("--block-size is 0", 5, *data, "--block-size", "0")
    refused("reads 1024 tokens, not 1025", 5, *data, "--block-size", "1025")
    refused("can't be written", 5, *data, "--json", "gone/l.json")
    refused("can't be written", 5, *data, "--json", ".")
    refused("--only 4 is beyond --upto 2", 5, *data, "--only", "4", "--upto", "2")
    refused("fewer than a batch", 5, *data, "--batch-size", "9999")
