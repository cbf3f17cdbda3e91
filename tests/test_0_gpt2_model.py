"""Stage 0: the model is GPT-2, by Hugging Face's own and by hand."""

import math
import re
from dataclasses import asdict, replace

import pytest
import torch
from conftest import ROOT, run_script
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode
from transformers import GPT2Config, GPT2LMHeadModel

from common.kit.cli import UserError
from common.model import GPT, GPTConfig, causal_attention
from common.presets import PRESETS, preset

TINY = GPTConfig(n_layer=2, n_head=2, n_embd=8, block_size=16, vocab_size=50)
# Of the papers: GPT-2's four (as released), GPT-3's table 2.1 in millions, rounded as printed.
RELEASED = {"gpt2": 124_439_808, "gpt2-medium": 354_823_168, "gpt2-large": 774_030_080,
            "gpt2-xl": 1_557_611_200}  # fmt: skip
GPT3 = {"gpt3-125m": 125, "gpt3-350m": 356, "gpt3-760m": 760, "gpt3-1.3b": 1316,
        "gpt3-2.7b": 2652, "gpt3-6.7b": 6658, "gpt3-13b": 12853}  # fmt: skip


def count(name, tied=True):
    with torch.device("meta"):
        model = GPT(preset(name))
    return sum(p.numel() for p in model.parameters()) - tied * model.lm_head.weight.numel()


@pytest.mark.parametrize("name", PRESETS)
def test_parameters_are_as_published_and_as_commented(name):
    comment = re.search(rf'"{re.escape(name)}": dict.*# ([\d,]+)',
                        (ROOT / "common" / "presets.py").read_text())  # fmt: skip
    assert f"{count(name):,}" == comment[1]
    if name in RELEASED:
        assert count(name) == RELEASED[name]
    if name in GPT3:
        assert round(count(name) / 1e6) == GPT3[name]
        assert preset(name).block_size == 2048


def test_untied_gpt2_has_163_million():
    assert count("gpt2", tied=False) == 163_037_184


@pytest.mark.parametrize("sizes", [(1, 1, 8), (2, 3, 24), (4, 2, 64)])
def test_logits_loss_and_gradients_are_hugging_faces(sizes):
    n_layer, n_head, n_embd = sizes
    torch.manual_seed(0)
    reference = GPT2LMHeadModel(
        GPT2Config(n_layer=n_layer, n_head=n_head, n_embd=n_embd, n_positions=32, vocab_size=101,
                   resid_pdrop=0, embd_pdrop=0, attn_pdrop=0, tie_word_embeddings=False,
                   initializer_range=0.2)
    )  # fmt: skip
    model = GPT(GPTConfig(n_layer, n_head, n_embd, block_size=32, vocab_size=101))
    conv1d = ("c_attn.weight", "c_proj.weight", "c_fc.weight")
    state = reference.state_dict()
    model.load_state_dict({k: v.t() if k.endswith(conv1d) else v for k, v in state.items()})
    idx, targets = torch.randint(101, (3, 20)), torch.randint(101, (3, 20))
    logits, loss = model(idx, targets)
    theirs = reference(idx, labels=targets, shift_labels=targets)
    torch.testing.assert_close(logits, theirs.logits, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(loss, theirs.loss)
    loss.backward()
    theirs.loss.backward()
    expected = dict(reference.named_parameters())
    for name, parameter in model.named_parameters():
        gradient = expected[name].grad
        gradient = gradient.t() if name.endswith(conv1d) else gradient
        torch.testing.assert_close(parameter.grad, gradient, rtol=1e-3, atol=1e-5, msg=name)


def test_attention_is_the_formula():
    torch.manual_seed(0)
    q, k, v = torch.randn(3, 2, 2, 5, 4).double()
    for b, h, t in torch.cartesian_prod(torch.arange(2), torch.arange(2), torch.arange(5)):
        scores = torch.stack([q[b, h, t] @ k[b, h, s] / 2.0 for s in range(t + 1)])  # √4 = 2
        weights = scores.exp() / scores.exp().sum()
        expected = sum(w * v[b, h, s] for s, w in enumerate(weights))
        torch.testing.assert_close(causal_attention(q, k, v)[b, h, t], expected)


def test_no_position_sees_its_future():
    torch.manual_seed(0)
    model = GPT(TINY)
    idx = torch.randint(50, (2, 16))
    before = model(idx)[0]
    for at in range(16):
        changed = idx.clone()
        changed[:, at] = (changed[:, at] + 1) % 50
        after = model(changed)[0]
        assert torch.equal(after[:, :at], before[:, :at])
        assert (after[:, at:] != before[:, at:]).any(-1).all()


def test_flops_a_token_are_what_torch_counts():
    config = GPTConfig(3, 2, 32, block_size=64, vocab_size=97)
    model, idx = GPT(config), torch.zeros(2, 48, dtype=torch.long)
    with FlopCounterMode(display=False) as counter:
        model(idx, idx)[1].backward()
    assert counter.get_total_flops() == config.flops_per_token(48) * idx.numel()


def test_masks_are_not_in_the_state_dict():
    names = set(GPT(TINY).state_dict())
    assert "transformer.h.0.attn.c_attn.weight" in names and "lm_head.weight" in names
    with torch.device("meta"):
        reference = GPT2LMHeadModel(GPT2Config(n_layer=2, n_head=2, n_embd=8))
    assert names == set(reference.state_dict())


def test_dropout_is_off_unless_asked_for():
    torch.manual_seed(0)
    idx = torch.randint(50, (2, 16))
    model = GPT(TINY).train()
    assert torch.equal(model(idx)[0], model(idx)[0])
    model = GPT(replace(TINY, dropout=0.5)).train()
    assert not torch.equal(model(idx)[0], model(idx)[0])
    model.eval()
    assert torch.equal(model(idx)[0], model(idx)[0])


def test_dropout_is_where_hugging_face_has_it(monkeypatch):
    """Once on the embedding, then on attention's weights and on what leaves each half block."""
    model = GPT(replace(TINY, dropout=0.5)).train()
    config = GPT2Config(
        n_layer=2, n_head=2, n_embd=8, n_positions=16, vocab_size=50, attn_implementation="eager"
    )
    reference, dropout, shapes = GPT2LMHeadModel(config).train(), F.dropout, []

    def counted(x, p=0.5, training=True, inplace=False):
        shapes.append(tuple(x.shape))
        return dropout(x, p, training, inplace)

    monkeypatch.setattr(torch.nn.functional, "dropout", counted)
    idx = torch.zeros(2, 16, dtype=torch.long)
    model(idx)
    ours = shapes.copy()
    shapes.clear()
    reference(idx)
    assert ours == shapes and len(ours) == 1 + 3 * 2


@pytest.mark.parametrize(
    "make, words",
    [
        (lambda: GPTConfig(n_head=5), ["5 heads", "768"]),
        (lambda: preset("gpt5"), ["gpt5", "gpt2-xl"]),
        (lambda: preset("0x2x128"), ["0x2x128", "4x2x128"]),
        (lambda: preset("gpt2", 1025), ["1024 tokens", "1025"]),
        (lambda: GPT(TINY)(torch.zeros(1, 17, dtype=torch.long)), ["17 tokens", "16"]),
        (lambda: GPT(TINY)(torch.zeros(1, 0, dtype=torch.long)), ["0 tokens", "16"]),
    ],
)  # fmt: skip
def test_sizes_that_do_not_fit_are_named(make, words):
    with pytest.raises(UserError) as error:
        make()
    assert all(word in str(error.value) for word in words)


def test_the_script_shows_and_proves(tmp_path):
    done = run_script(0, "--device", "cpu", cwd=tmp_path, timeout=60)
    assert done.returncode == 0 and done.stderr == ""
    for words in ("124,439,808", "163,037,184", "748,270,080", "the same, bit for bit"):
        assert words in done.stdout
    loss = float(re.search(r"untrained model: ([\d.]+)", done.stdout)[1])
    assert abs(loss - math.log(50257)) < 0.3
    assert max(map(len, done.stdout.splitlines())) <= 80


def test_a_large_preset_takes_no_memory(call):
    code, stdout, _ = call(0, "--model", "gpt3-13b")
    assert code == 0 and "12,853,386,240" in stdout and "no checks: they would allocate" in stdout


def test_a_leak_is_caught(call, monkeypatch):
    def leaky(q, k, v, dropout_p=0.0):
        return torch.softmax(q @ k.transpose(-2, -1), dim=-1) @ v

    monkeypatch.setitem(PRESETS, "gpt2", asdict(replace(TINY, attention=leaky)))
    with pytest.raises(AssertionError, match="sees its future"):
        call(0, "--block-size", "8")


def test_bad_input(refused):
    refused("no preset is called 'gpt5'", 0, "--model", "gpt5")
    refused("--batch-size is 0", 0, "--batch-size", "0")
    refused("a block size of 1024 tokens, not 1025", 0, "--block-size", "1025")
    refused("--block-size is 1: give 2", 0, "--block-size", "1")
    refused("--seed is -1", 0, "--seed", "-1")
    refused("--seed: invalid int value: 'x' (", 0, "--seed", "x")
    refused("--steps: invalid int value: '1.5' (", 6, "--steps", "1.5")
    refused("--lr: invalid float value: 'x' (", 8, "--lr", "1", "x")
    refused("no option is called --wide (", 0, "--wide", "1")


def test_a_device_that_is_not_there(capsys):
    from common.kit.device import pick_device

    for name in ("cuda:7", "tpu", "cuda:x", "cpu:"):
        with pytest.raises(UserError, match=name):
            pick_device(name)
