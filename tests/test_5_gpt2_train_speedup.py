"""Stage 5: each rung is the same model, and the ladder's arithmetic is right."""

import itertools
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

from common.data import Batches
from common.init import init_weights, tie_weights
from common.kit import measure
from common.kit.cli import UserError, is_out_of_memory
from common.kit.device import keep_freed_memory, pick_device, release_memory
from common.kit.measure import PeakMemory, matmul_peak, spread, timed
from common.ladder import Ladder, Rung
from common.model import GPT, GPTConfig, causal_attention
from common.pretrained import HuggingFace
from common.speed import (
    Setting,
    autocast,
    autocast_dtype,
    best_setting,
    build,
    flash_attention,
    loss_function,
    pad_vocab,
    setting_of,
    why_not,
    why_not_compile,
    why_not_flash,
)

CPU = torch.device("cpu")
TINY = GPTConfig(n_layer=2, n_head=2, n_embd=32, block_size=32, vocab_size=50257)
SMALL = ("--model", "1x2x32", "--batch-size", "2", "--block-size", "32", "--steps", "4",
         "--eval-tokens", "64")  # fmt: skip


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
    tf32 = why_not({"tf32": True}, Setting(), TINY, 2, 8, device)
    assert tf32 == (None if dtype is torch.bfloat16 else "this GPU is older than Ampere")
    residual = why_not({"residual": True}, Setting(dtype=dtype), TINY, 2, 8, device)
    assert (residual is None) == (dtype is torch.bfloat16)


def test_the_residual_stream_is_of_autocasts_dtype():
    """Only if the setting says so, and only under autocast; the loss stays near."""
    x, y = torch.randint(50257, (2, 2, 32))
    losses, found = {}, []
    for narrow in (False, True):
        model = build(TINY, Setting(residual=narrow), 1)
        for block in model.transformer.h:
            block.register_forward_hook(lambda _, x, y: found.append(y.dtype))
        with autocast(CPU, torch.bfloat16):
            losses[narrow] = model(x, y)[1]
        assert set(found) == {torch.bfloat16 if narrow else torch.float32}
        losses[narrow].backward()
        found.clear()
        model(x)
        assert set(found) == {torch.float32}
        found.clear()
    assert losses[True].dtype is torch.float32
    assert losses[True].item() == pytest.approx(losses[False].item(), abs=0.02)
    gpu = torch.device("cuda")
    assert setting_of("bfloat16", "flash", "yes", gpu).residual
    assert not setting_of("float16", "flash", "yes", gpu).residual
    assert not setting_of("bfloat16", "flash", "yes", CPU).residual


def test_hugging_faces_row_has_our_loss_and_gradient():
    torch.manual_seed(0)
    model = init_weights(tie_weights(GPT(TINY)), 1)
    theirs = HuggingFace(model).train()
    wte = theirs.theirs.transformer.wte
    assert theirs.theirs.lm_head.weight is wte.weight
    x, y = torch.randint(50257, (2, 2, 32))
    torch.testing.assert_close(theirs(x)[0], model(x)[0])
    ours, loss = model(x, y)[1], theirs(x, y)[1]
    torch.testing.assert_close(ours, loss)
    ours.backward()
    loss.backward()
    torch.testing.assert_close(
        model.transformer.wte.weight.grad, wte.weight.grad, rtol=1e-3, atol=1e-6
    )


def rung(name, *ms, loss=10.0, dtype="float32"):
    """Two steps of warm-up, and then the ones that count."""
    return Rung(name, dtype, [9999.0, 999.0, *ms], loss, val_loss=9.5, peak_bytes=2 * 10**9)


def test_the_arithmetic_of_the_ladder(capsys):
    ladder = Ladder(TINY, B=4, T=32, device=CPU)
    ladder.peaks = {"torch.float32, highest": 1e12, "torch.bfloat16, highest": 4e12}
    first, second = rung("0 fp32", 190, 200, 240), rung("2 autocast", 100, loss=10.004,
                                                        dtype="bfloat16")  # fmt: skip
    third = rung("3 attention", 80, dtype="bfloat16")
    for one, previous in ((first, None), (second, first), (third, second)):
        ladder.add(one, previous)
    assert first.median_ms == pytest.approx(200) and spread(first.timed) == pytest.approx(0.125)
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
                                    f"{second.mfu:.1%}", "2.0", "+0.0040", "9.500"]  # fmt: skip


@pytest.mark.parametrize("last, words", [(205, None), (100, "same work"), (400, "same work"),
                                         (0.01, "of the peak")])  # fmt: skip
def test_a_busy_machine_is_reported(capsys, last, words):
    ladder = Ladder(TINY, B=4, T=32, device=CPU)
    ladder.peaks = {"torch.float32, highest": 1e12}
    for ms in (200, 80):
        ladder.add(rung("0 fp32", ms))
    ladder.add_last(rung("0 fp32, again", last))
    stdout = capsys.readouterr().out
    assert ("unreliable" in stdout) == (words is not None) and (words or "drift: 1.02") in stdout


def test_a_rung_with_another_loss_does_not_count():
    ladder = Ladder(TINY, B=4, T=32, device=CPU)
    ladder.peaks = {"torch.float32, highest": 1e12}
    ladder.add(rung("0 fp32", 200))
    for wrong in (10.03, 9.97, math.nan):
        with pytest.raises(AssertionError, match="loss"):
            ladder.add(rung("1 wrong", 1, loss=wrong))
    assert len(ladder.rungs) == 1


def test_a_rung_is_the_log_of_its_run():
    """The first loss and every step's time are kept, and two steps of warm-up do not count."""
    log = Rung("0 fp32")
    for step in range(5):
        log.row(step=step, loss=9.0 - step, ms=100.0 - step, tokens_per_s=1.0)
    log.val(5, 8.5)
    assert (log.loss, log.val_loss, log.ms[0]) == (9.0, 8.5, 100.0)
    assert log.timed == [98.0, 97.0, 96.0] and log.median_ms == 97.0


def test_the_device_is_waited_for_around_the_work_and_not_within(monkeypatch):
    order = []
    monkeypatch.setattr(measure, "synchronize", lambda device: order.append("wait"))
    monkeypatch.setattr(measure.time, "perf_counter", lambda: order.append("clock") or len(order))
    timed(lambda: order.append("work"), CPU)
    assert order == ["wait", "clock", "work", "wait", "clock"]


def test_the_peak_does_not_count_a_slow_first_product(monkeypatch):
    """A GPU loads its kernels in the first product of each size: here it takes 2 seconds."""
    seconds = {}

    class Matrix:
        def __init__(self, n):
            self.n = n

        def to(self, dtype):
            return self

        def __matmul__(self, other):
            seconds.setdefault(self.n, [2.0, *[0.5] * 20])
            clock[0] += seconds[self.n].pop(0)

    clock = [0.0]
    monkeypatch.setattr(measure.torch, "randn", lambda n, *_, device: Matrix(n))
    monkeypatch.setattr(measure.time, "perf_counter", lambda: clock[0])
    assert matmul_peak(CPU, torch.float32) == 2 * 1024**3 / 0.5


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

    monkeypatch.setattr("common.kit.device.sys.platform", "linux")
    monkeypatch.setattr("common.kit.device.platform.libc_ver", lambda: ("glibc", "2.35"))
    monkeypatch.setattr("common.kit.device.ctypes.CDLL", lambda name: Libc())
    keep_freed_memory()
    assert asked == calls


def test_timing_and_peaks_are_of_this_world():
    seconds, result = timed(lambda: time.sleep(0.05) or 7, CPU)
    assert result == 7 and seconds >= 0.05
    peak = matmul_peak(CPU, torch.float32)
    n = 1024
    a = torch.randn(n, n)
    usual = 2 * n**3 / sorted(timed(lambda: a @ a, CPU)[0] for _ in range(5))[2]
    assert usual / 3 < peak < usual * 3


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


def trained(script, setting, steps=3, lr=3e-4):
    """TINY after some steps of the script's loop, and the rung that logged them."""
    model, log = build(TINY, setting, seed=1), Rung("rung")
    ids = torch.randint(50257, (1000,), generator=torch.Generator().manual_seed(0))
    batches, val = Batches(ids[:900].numpy(), 2, 32), ids[900:]
    options = script.Options(steps=steps, lr=lr, block_size=32)
    script.train(model, batches, val, log, options, setting)
    return model, log


def test_every_rung_is_the_same_model():
    """The losses of the first steps, rung by rung, within bf16's rounding."""
    script, setting, losses = load_script(5), Setting(), []
    rungs = script.speedups(CPU)
    for _, change, _ in rungs:
        setting = replace(setting, **change)
        _, log = trained(script, replace(setting, compile=False))
        losses.append((log.loss, log.val_loss))
    assert losses[0] == losses[1]  # TF32 changes nothing on a CPU
    for found in zip(*losses, strict=True):
        assert max(found) - min(found) < 0.02
    assert [name for name, *_ in rungs] == [
        "fp32", "TF32", "autocast", "attention", "vocabulary", "compile", "fused AdamW",
        "residual"
    ]  # fmt: skip


def test_with_everything_off_the_loop_is_stage_4s():
    """Off is identity: the same weights bit for bit as stage 4's train leaves them."""
    ours, log = trained(load_script(5), Setting())
    script, losses = load_script(4), []

    class Log:
        row = staticmethod(lambda **values: losses.append(values["loss"]))
        val = staticmethod(lambda step, loss: losses.append(loss))

    model = init_weights(tie_weights(GPT(TINY)), 1)
    ids = torch.randint(50257, (1000,), generator=torch.Generator().manual_seed(0))
    options = script.Options(steps=3, lr=3e-4, block_size=32)
    script.train(model, Batches(ids[:900].numpy(), 2, 32), ids[900:], Log, options)
    assert losses[0] == log.loss and losses[-1] == log.val_loss and len(losses) == 4
    for (name, a), b in zip(ours.named_parameters(), model.parameters(), strict=True):
        assert torch.equal(a, b), name


def test_rung_6s_update_is_fused_and_the_others_is_not(monkeypatch):
    seen = []
    usual = torch.optim.AdamW.__init__
    monkeypatch.setattr(
        torch.optim.AdamW, "__init__",
        lambda *given, fused=None, **more: seen.append(fused) or usual(*given, fused=fused, **more),
    )  # fmt: skip
    results = [trained(load_script(5), Setting(fused=fused))[0] for fused in (False, True)]
    assert seen == [None, True]
    for a, b in zip(*(model.parameters() for model in results), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-5)


def test_fp16_is_trained_with_a_gradient_scaler(monkeypatch):
    """Without it, gradients below 6e-8 would be 0."""
    seen = []
    backward = torch.Tensor.backward
    monkeypatch.setattr(torch.Tensor, "backward", lambda t: seen.append(t.item()) or backward(t))
    plain, _ = trained(load_script(5), Setting(), steps=1)
    model, log = trained(load_script(5), Setting(dtype=torch.float16), steps=1)
    assert seen[1] == pytest.approx(65536 * log.loss, rel=1e-3) and seen[0] < 20
    for a, b in zip(plain.parameters(), model.parameters(), strict=True):
        assert (a - b).abs().max() < 1e-3


def test_the_best_setting_is_what_was_asked_for_or_measured(monkeypatch):
    monkeypatch.setattr("common.speed.why_not_compile", lambda device: "no compiler")
    monkeypatch.setattr("common.speed.why_not_flash", lambda *_: "slow")
    monkeypatch.setattr("common.speed.autocast_dtype", lambda device: torch.bfloat16)
    found = best_setting(TINY, 2, 8, CPU)
    assert found == Setting(False, torch.bfloat16, causal_attention, 128, False)
    assert found.names() == {"dtype": "bfloat16", "attention": "formula", "compile": "no"}
    monkeypatch.setattr("common.speed.why_not_flash", lambda *_: None)
    assert best_setting(TINY, 2, 8, CPU).attention is flash_attention
    given = {"dtype": "float32", "attention": "formula", "compile": "yes"}
    assert best_setting(TINY, 2, 8, CPU, **given).names() == given
    assert setting_of(**given, device=CPU).dtype is None


def test_the_whole_ladder_as_a_user_runs_it(text_file, tmp_path):
    done = run_script(
        5, *SMALL, "--data", str(text_file), "--json", "l.json", "--device", "cpu", cwd=tmp_path
    )
    assert done.returncode == 0 and done.stderr == "", done.stderr
    for words in ("0 fp32", "1 TF32", "skipped", "Hugging Face", "0 fp32, again", "drift",
                  "at most about "):  # fmt: skip
        assert words in done.stdout
    assert max(map(len, done.stdout.splitlines())) <= 80
    assert re.search(r"at most about .+ to go$", done.stdout, re.M)
    result = json.loads((tmp_path / "l.json").read_text())
    rows = result["rungs"]
    assert all(len(r["ms"]) == 4 and 0 < r["mfu"] < 1 for r in rows)
    assert all(abs(r["loss"] - rows[0]["loss"]) < 0.02 for r in rows)
    assert rows[-1]["loss"] == rows[0]["loss"] and rows[-1]["val_loss"] == rows[0]["val_loss"]
    rounded = [r for r in rows if r["name"].startswith("2")]
    assert all(r["loss"] != rows[0]["loss"] for r in rounded)  # 16 bits were really used
    compiled = [r for r in rows if r["name"].startswith(("5", "6", "Hugging", "HF"))]
    assert len(compiled) == 3 + (sys.platform == "linux") and all(
        r["ms"][0] > 3 * min(r["ms"]) for r in compiled
    )
    assert {p.name for p in (tmp_path / "runs/5_speedup").iterdir()} == {"ladder.png"}


@pytest.mark.usefixtures("quick_peak")
def test_some_rungs_alone(call, text_file):
    data = ("--data", str(text_file))
    code, stdout, _ = call(5, *SMALL, *data, "--rungs", "0")
    names = re.findall(r"^(\d \w+)  +\d+\.\d", stdout, re.M)
    assert code == 0 and names == ["0 fp32"] and "0 fp32, again" in stdout
    code, stdout, _ = call(5, *SMALL, *data, "--rungs", "4")
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
    assert "saved: " in stdout
    assert [p.name for p in (tmp_path / "runs/5_speedup").iterdir()] == ["ladder.png"]


def full(*_, **__):
    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 3.00 GiB.")


def test_a_model_too_large_for_the_device_is_one_line(refused, text_file, monkeypatch):
    monkeypatch.setattr("torch.optim.AdamW.step", full)
    refused("no rung fits in memory", 5, *SMALL, "--data", str(text_file), "--rungs", "0", "3")


@pytest.mark.usefixtures("quick_peak")
def test_a_rung_that_does_not_fit_is_skipped(call, text_file, monkeypatch):
    """Rung 3 is then the first, since its attention has no (T, T) scores."""

    def build_if_it_fits(config, setting, seed):
        return full() if setting.attention is causal_attention else build(config, setting, seed)

    monkeypatch.setattr("common.speed.build", build_if_it_fits)
    monkeypatch.setattr("common.speed.why_not_flash", lambda *_: None)
    code, stdout, stderr = call(5, *SMALL, "--data", str(text_file), "--rungs", "0", "3", "4")
    assert code == 0, stderr
    assert re.search(r"^0 fp32 +skipped: out of memory$", stdout, re.M)
    names = re.findall(r"^(\d \w+)(?:, again)? +\d+\.\d", stdout, re.M)
    assert names == ["3 attention", "4 vocabulary", "3 attention"]


@pytest.mark.parametrize("formula, flash, reason", [
    (5, 4, None), (20, 21, None), (2, 5, "it takes 2.5 times as long as the formula"),
])  # fmt: skip
def test_flash_unless_it_is_slower(monkeypatch, formula, flash, reason):
    times = itertools.cycle([formula, flash])
    next(times)  # the first call, of the formula alone, is not counted
    monkeypatch.setattr("common.speed.timed", lambda work, device: (next(times), work()))
    assert why_not_flash(TINY, 1, 8, None, CPU) == reason


def test_where_the_formula_does_not_fit_flash_wins(monkeypatch):
    how = (TINY, 1, 8, None, CPU)
    monkeypatch.setattr("common.speed.causal_attention", full)
    assert why_not_flash(*how) is None
    monkeypatch.setattr("common.speed.causal_attention", lambda *_: torch.ones(2) @ torch.ones(3))
    with pytest.raises(RuntimeError, match="size"):
        why_not_flash(*how)


@pytest.mark.parametrize("message, is_full", [
    ("[enforce fail at alloc_cpu.cpp:124] DefaultCPUAllocator: can't allocate memory", True),
    ("CUDA error: out of memory", True),
    ("MPS backend out of memory (MPS allocated: 18 GB, max allowed: 18 GB)", True),
    ("Invalid buffer size: 24.00 GiB", True),  # MPS, for one tensor that is too large
    ("mat1 and mat2 shapes cannot be multiplied (2x3 and 4x5)", False),
])  # fmt: skip
def test_what_a_full_memory_says(message, is_full):
    assert is_out_of_memory(RuntimeError(message)) is is_full


def test_cudnn_plans_for_training_alone(monkeypatch):
    """It would plan anew for each length of a text that is sampled."""
    allowed = []

    def sdpa(*_, **__):
        allowed.append(torch.backends.cuda.cudnn_sdp_enabled())

    monkeypatch.setattr("common.speed.F.scaled_dot_product_attention", sdpa)
    flash_attention(1, 2, 3)
    with torch.no_grad():
        flash_attention(1, 2, 3)
    assert allowed == [True, False] and torch.backends.cuda.cudnn_sdp_enabled()


def test_the_trial_of_the_compiler_is_a_step_and_leaves_no_trace(monkeypatch):
    """Else the shapes of the next model would be compiled as ones that change."""
    shapes = []

    def compiled(work):
        def backend(graph, inputs):
            shapes.append([tuple(x.shape) for x in inputs if isinstance(x, torch.Tensor)])
            return graph

        return torch.compile(work, backend=backend)

    monkeypatch.setattr("common.speed.compiled", compiled)
    assert why_not_compile(CPU) is None and (1, 8) in shapes[0]
    model, ids = build(TINY, Setting(attention=flash_attention), 1), torch.zeros(2, 32).long()
    loss_function(model, True)(ids, ids)
    assert len(shapes) == 2 and (2, 32) in shapes[1]
    assert all(isinstance(n, int) for shape in shapes[1] for n in shape)
    monkeypatch.setattr("torch.Tensor.backward", full)
    assert why_not_compile(CPU).startswith("OutOfMemoryError: CUDA out of memory")


# GPUs, as far as they can be tested without one


@pytest.mark.parametrize("name, share", [("NVIDIA H100 80GB HBM3", "80% of the data sheet's 989"),
                                         ("NVIDIA H100 PCIe", None)])  # fmt: skip
def test_the_peak_beside_the_data_sheets(monkeypatch, capsys, name, share):
    monkeypatch.setattr("common.ladder.matmul_peak", lambda device, dtype: 791e12)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: name)
    ladder = Ladder(TINY, B=4, T=32, device=torch.device("cuda:0"))
    for dtype in (torch.float32, torch.bfloat16, torch.bfloat16):
        assert ladder.peak(dtype) == 791e12
    lines = capsys.readouterr().out.splitlines()[1:]
    assert len(lines) == 2 and "the fastest product: 791 TFLOP/s" in lines[0]
    assert "sheet" not in lines[0] and lines[1].endswith(share or "TFLOP/s")


TOO_OLD = ("The NVIDIA driver on your system is too old (found version 12020). Please update your "
           "GPU driver by downloading and installing a new version")  # fmt: skip
NO_CODE = "CUDA error: no kernel image is available for execution on the device\nCUDA kernel errors"


@pytest.mark.parametrize("error, words", [
    (RuntimeError(TOO_OLD), "is too old (found version 12020); torch "),
    (RuntimeError(NO_CODE), "it is of sm_61, torch has code for ['sm_75', 'sm_90']; torch "),
    (RuntimeError("CUDA error: all CUDA-capable devices are busy or unavailable\n"), "are busy"),
    (RuntimeError("Found no NVIDIA driver on your system. Please check"), None),
    (RuntimeError("No CUDA GPUs are available"), None),
    (AssertionError("Torch not compiled with CUDA enabled"), None),
])  # fmt: skip
def test_a_gpu_that_torch_can_not_use(monkeypatch, capsys, error, words):
    """A line that says why and what to install; without a GPU that there is none."""

    def zeros(*_, **__):
        raise error

    monkeypatch.setattr(torch, "zeros", zeros)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda index: (6, 1))
    monkeypatch.setattr(torch.cuda, "get_arch_list", lambda: ["sm_75", "sm_90"])
    monkeypatch.setattr(torch.cuda, "is_available", lambda: words is not None)
    assert pick_device("auto") == CPU
    line = capsys.readouterr().out
    assert ("no GPU found" in line) == (words is None) and line.count("\n") == 1
    with pytest.raises(UserError) as raised:
        pick_device("cuda:1")
    for said in (line, str(raised.value)) if words else ():
        assert words in said and "install" in said


def test_apples_memory_is_released_too(monkeypatch):
    released = []
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    monkeypatch.setattr(torch.mps, "empty_cache", lambda: released.append("mps"))
    release_memory()
    assert released == ["mps"]


def test_bad_input(refused, text_file):
    data = ("--data", str(text_file))
    refused("--rungs 8: give some of 0 to 7", 5, *data, "--rungs", "8")
    refused("--rungs 0 -1", 5, *data, "--rungs", "0", "-1")
    refused("--steps is 2: give 3 or more", 5, *data, "--steps", "2")
    refused("--batch-size is 0", 5, *data, "--batch-size", "0")
    refused("--block-size is 0", 5, *data, "--block-size", "0")
    refused("a block size of 1024 tokens, not 1025", 5, *data, "--block-size", "1025")
    refused("can't be written", 5, *data, "--json", "gone/l.json")
    refused("can't be written", 5, *data, "--json", ".")
    refused("fewer than a batch", 5, *data, "--batch-size", "9999")
