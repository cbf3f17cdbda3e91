"""Stage 4: tying and initialisation, measured."""

import csv
import math
import re

import pytest
import torch
from conftest import load_script, run_script
from torch.nn import functional as F

from common.init import init_weights, tie_weights
from common.model import GPT, GPTConfig

CONFIG = GPTConfig(n_layer=8, n_head=4, n_embd=128, block_size=256, vocab_size=5000)


def fresh(seed=1):
    return init_weights(tie_weights(GPT(CONFIG)), seed)


@pytest.mark.parametrize(
    "kind, std",
    [
        ("wte.weight", 0.02),
        ("wpe.weight", 0.01),
        ("c_attn.weight", 0.02),
        ("c_fc.weight", 0.02),
        ("c_proj.weight", 0.02 / 4),  # √(2 · 8 layers) = 4
    ],
)
def test_standard_deviations(kind, std):
    found = [p for name, p in fresh().named_parameters() if name.endswith(kind)]
    assert len(found) == {"wte.weight": 1, "wpe.weight": 1, "c_proj.weight": 16}.get(kind, 8)
    for p in found:
        tolerance = 6 * std / math.sqrt(2 * p.numel())
        assert p.std().item() == pytest.approx(std, abs=tolerance)
        assert p.mean().abs().item() < 6 * std / math.sqrt(p.numel())


def test_biases_are_zero_and_norms_the_identity():
    model = GPT(CONFIG)
    with torch.no_grad():
        for p in model.parameters():
            p.fill_(7)
    for name, p in init_weights(model, 1).named_parameters():
        if name.endswith("bias"):
            assert not p.any(), name
        if ".ln_" in name and name.endswith("weight"):
            assert (p == 1).all(), name


def test_tied_is_one_tensor_drawn_once():
    model = fresh()
    assert model.lm_head.weight is model.transformer.wte.weight
    names = [name for name, _ in model.named_parameters()]
    assert "lm_head.weight" not in names
    untied = init_weights(GPT(CONFIG), 1)
    # the head is drawn last: all that comes before it is the same with and without it
    assert torch.equal(untied.transformer.wte.weight, model.transformer.wte.weight)
    assert torch.equal(untied.transformer.h[7].mlp.c_proj.weight,
                       model.transformer.h[7].mlp.c_proj.weight)  # fmt: skip


def test_the_seed_alone_decides():
    torch.manual_seed(5)
    one, two = fresh(3).state_dict(), fresh(3).state_dict()
    assert all(torch.equal(one[name], two[name]) for name in one)
    assert not torch.equal(fresh(4).transformer.wte.weight, one["transformer.wte.weight"])


def test_both_paths_reach_a_tied_gradient():
    model = fresh()
    idx, targets = torch.tensor([[1, 2, 3]]), torch.tensor([[2, 3, 4]])
    model(idx, targets)[1].backward()
    gradient = model.transformer.wte.weight.grad
    head = model.lm_head.weight.detach().requires_grad_()
    loss = F.cross_entropy(F.linear(_hidden(model, idx), head).view(-1, 5000), targets.view(-1))
    as_head = torch.autograd.grad(loss, head)[0]
    assert not torch.allclose(gradient[:4], as_head[:4])  # rows 1 to 3 were also read
    torch.testing.assert_close(gradient[5:], as_head[5:])  # the others only predicted


def _hidden(model, idx):
    seen = []
    hook = model.transformer.ln_f.register_forward_hook(
        lambda _, __, out: seen.append(out.detach())
    )
    model(idx)
    hook.remove()
    return seen[0]


def test_loss_at_step_0_is_as_theory_says():
    """Logits are sums of 128 products of a normed unit and a weight of std 0.02: variance
    0.02² · 128, which costs half of itself above ln(5000)."""
    torch.manual_seed(0)
    idx, targets = torch.randint(5000, (8, 128)), torch.randint(5000, (8, 128))
    with torch.no_grad():
        logits, loss = fresh()(idx, targets)
    assert logits.std().item() == pytest.approx(0.02 * math.sqrt(128), rel=0.05)
    assert loss.item() == pytest.approx(math.log(5000) + 0.02**2 * 128 / 2, abs=0.02)


def test_the_residual_stream_spreads_as_measured_by_hand():
    script, model = load_script(4), fresh()
    idx = torch.arange(20)[None]
    x = model.transformer.wte(idx) + model.transformer.wpe.weight[:20]
    for block in model.transformer.h:
        x = block(x)
    assert script.residual_std(model, idx) == pytest.approx(x.std().item())
    # without the scaling of c_proj the stream would have grown √(2 · n_layer) times as much
    with torch.no_grad():
        for name, p in model.named_parameters():
            if name.endswith("c_proj.weight"):
                p.mul_(4)
    assert script.residual_std(model, idx) > 1.2 * x.std().item()


def test_the_script_as_a_user_runs_it(text_file, tmp_path):
    done = run_script(
        4, "--model", "gpt-nano", "--batch-size", "2", "--block-size", "16", "--steps", "8",
        "--data", str(text_file), "--device", "cpu", cwd=tmp_path,
    )  # fmt: skip
    assert done.returncode == 0 and done.stderr == "", done.stderr
    table = dict(
        re.findall(r"^(as in stage 3|tied|tied, initialized) +([\d,]+ .*)$", done.stdout, re.M)
    )
    rows = {name: [float(x.replace(",", "")) for x in row.split()] for name, row in table.items()}
    assert rows["as in stage 3"][0] - rows["tied"][0] == 50257 * 48
    assert rows["tied"][0] == rows["tied, initialized"][0] == 2_546_400
    assert rows["tied"][2] > 20 and rows["tied, initialized"][2] == pytest.approx(10.83, abs=0.02)
    assert rows["as in stage 3"][1] > 10 * rows["tied, initialized"][1]
    log = list(csv.DictReader((tmp_path / "runs/4_best_practices/metrics.csv").open()))
    after = [float(row["val_loss"]) for row in log if row["val_loss"]]
    assert after == pytest.approx([row[4] for row in rows.values()], abs=1e-3)
    log = [row for row in log if row["loss"]]
    assert [row["curve"] for row in log[::8]] == list(rows)
    for name, row in rows.items():
        losses = [float(r["loss"]) for r in log if r["curve"] == name]
        assert losses[0] == pytest.approx(row[2], abs=1e-3)
        assert losses[-1] == pytest.approx(row[3], abs=1e-3)
    assert (tmp_path / "runs/4_best_practices/metrics.png").exists()


def test_its_first_curve_is_stage_3(call, text_file, tmp_path):
    """Off means identity: without tying and initialisation, stage 4 is stage 3, bit for bit."""
    options = ("--model", "gpt-nano", "--batch-size", "2", "--block-size", "16", "--steps", "3",
               "--data", str(text_file))  # fmt: skip
    losses = []
    for stage in (3, 4):
        assert call(stage, *options, "--out", f"out{stage}")[0] == 0
        rows = list(csv.DictReader((tmp_path / f"out{stage}/metrics.csv").open()))
        losses.append([row["loss"] for row in rows if row["loss"]][:3])
    assert losses[0] == losses[1]


def test_bad_input(refused, text_file):
    data = ("--data", str(text_file))
    refused("--steps is 0", 4, *data, "--steps", "0")
    refused("fewer than a batch", 4, *data, "--batch-size", "4000")
    refused("a block size of 1024 tokens", 4, *data, "--block-size", "1025")
