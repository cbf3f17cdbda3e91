"""Stage 2: the naked loop learns by heart."""

import re

import torch
from conftest import load_script, run_script

from common.model import GPT, GPTConfig
from common.tokenizer import gpt2_tokenizer


def test_the_paragraph_fills_the_rows():
    script = load_script(2)
    ids = gpt2_tokenizer().encode_ordinary(script.PARAGRAPH)
    assert len(ids) > script.B * script.T == 128
    assert 110 <= len(script.PARAGRAPH.split()) <= 140


def test_the_loop_is_adamw_by_hand():
    """Two steps of the script's loop against Loshchilov & Hutter's algorithm 2, written out."""
    script = load_script(2)
    torch.manual_seed(0)
    model = GPT(GPTConfig(1, 1, 8, block_size=8, vocab_size=20)).double()
    twin = GPT(model.config).double()
    twin.load_state_dict(model.state_dict())
    x, y = torch.randint(20, (2, 8)), torch.randint(20, (2, 8))
    script.train(model, x, y, script.Options(steps=2, lr=1e-2))
    moments = {n: (torch.zeros_like(p), torch.zeros_like(p)) for n, p in twin.named_parameters()}
    for t in (1, 2):
        twin.zero_grad()
        twin(x, y)[1].backward()
        for name, p in twin.named_parameters():
            m, v = moments[name]
            m.mul_(0.9).add_(p.grad, alpha=0.1)
            v.mul_(0.999).add_(p.grad**2, alpha=0.001)
            update = (m / (1 - 0.9**t)) / ((v / (1 - 0.999**t)).sqrt() + 1e-8)
            p.data = p.data - 1e-2 * (0.01 * p.data + update)
    for ours, theirs in zip(model.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs)


def test_a_small_model_recites_the_paragraph(tmp_path):
    done = run_script(
        2, "--model", "1x2x64", "--steps", "40", "--lr", "1e-2", "--device", "cpu", cwd=tmp_path
    )  # fmt: skip
    assert done.returncode == 0 and done.stderr == ""
    losses = [float(loss) for loss in re.findall(r"loss +([\d.]+)", done.stdout)]
    assert len(losses) == 40 and losses[0] > 10 and losses[-1] < 0.1
    assert "recalled: 100.0% of 128 tokens" in done.stdout
    assert "  | A lighthouse keeper once tried to teach the sea to count." in done.stdout


def test_what_was_not_learned_is_not_recalled(call):
    code, stdout, _ = call(2, "--model", "gpt-nano", "--steps", "1")
    assert code == 0
    assert float(re.search(r"recalled: ([\d.]+)%", stdout)[1]) < 20


def test_bad_input(refused):
    refused("no preset", 2, "--model", "gpt")
    refused("--steps is 0", 2, "--steps", "0")
    refused("--lr is 0", 2, "--lr", "0")
