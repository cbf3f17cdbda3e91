"""Stage 9 as a user runs it: the ladder, a text as it is made, and a conversation."""

import fcntl
import json
import os
import pty
import re
import select
import shutil
import signal
import subprocess
import sys
import termios
import time
from pathlib import Path

import pytest
import torch
from conftest import SCRIPTS, load_script
from helpers import TINY, checkpoints, finished_run, one_thread
from safetensors.torch import load_file
from test_9_decode import tiny
from torch.nn.functional import one_hot

from common.bandwidth import DecodeLadder, DecodeRung
from common.generate import generate
from common.pretrained import from_hugging_face, to_hugging_face
from common.run import checkpoint
from common.tokenizer import gpt2_tokenizer


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("tiny") / "model"
    to_hugging_face(tiny(64, 50257, n_layer=1), path, {})
    return path


@pytest.fixture(scope="module")
def trained(text_file, tmp_path_factory) -> Path:
    """A run of stage 7 with checkpoints."""
    options = (*TINY, "--data", str(text_file), "--steps", "2")
    return finished_run(tmp_path_factory.mktemp("trained") / "run", *options)


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    """Memory is not measured, and compilers only trace: test_9_decode compiles in earnest."""
    monkeypatch.setattr("common.bandwidth.read_bandwidth", lambda device: 1e11)
    monkeypatch.setattr("common.bandwidth.why_not_compile", lambda device: "not in this test")
    monkeypatch.setattr("common.bandwidth.autocast_dtype", lambda device: None)
    monkeypatch.setattr("common.speed.why_not_compile", lambda device: None)
    monkeypatch.setattr("common.decode.compiled", traced)
    with one_thread():
        yield


def traced(work, **options):
    return torch.compile(work, backend="eager")


@pytest.fixture
def ladder(folder, text_file):
    """The options of a ladder with a tiny model."""
    return ("--model", str(folder), "--data", str(text_file), "--eval-tokens", "64",
            "--max-new-tokens", "24")  # fmt: skip


def continued(model, prompt: str, n: int, *how) -> str:
    """The text of n new tokens, by stage 1."""
    tokenizer = gpt2_tokenizer(model.config.vocab_size)
    ids = torch.tensor([tokenizer.encode_ordinary(prompt)])
    new = generate(model, ids, n, *how)[0, ids.size(1) :].tolist()
    return gpt2_tokenizer().decode_bytes(new).decode(errors="replace")


# The ladder.


def test_the_whole_ladder(call, ladder, tmp_path):
    code, stdout, _ = call(9, *ladder, "--json", "l.json")
    assert code == 0 and "drift: " in stdout and "times as fast as Hugging Face's" in stdout
    assert max(map(len, stdout.splitlines())) <= 80
    result = json.loads((tmp_path / "l.json").read_text())
    rows = {r["name"]: r for r in result["rungs"]}
    assert list(rows) == [
        "0 whole text", "1 cache", "2 fixed cache", "3 compile", "4 16 bits", "5 8 bits",
        "6 batch of 8", "7 batch of 64", "HF fp32", "0 again",
    ]  # fmt: skip
    for name, row in rows.items():
        assert re.search(rf"^{name} +\d+\.\d ", stdout, re.M)
        assert row["tokens_per_s"] > 0 and row["bandwidth"] > 0
        if name != "0 again":
            n = 12 if name == "0 whole text" else 24
            assert len(row["ids"]) == row["B"] and all(len(ids) == n for ids in row["ids"])
        if row["dtype"] == "float32":
            assert (
                row["same_ids"] == 1
                and [ids[:12] for ids in row["ids"]] == rows["0 whole text"]["ids"] * row["B"]
            )
    assert [rows[n]["B"] for n in ("5 8 bits", "6 batch of 8", "7 batch of 64")] == [1, 8, 64]
    read = [rows[n]["bytes_read"] for n in ("3 compile", "4 16 bits", "5 8 bits")]
    assert read[0] / 2 < read[1] < read[0] * 0.6 and read[0] / 4 < read[2] < read[0] * 0.4
    assert rows["4 16 bits"]["bits_per_byte"] != rows["3 compile"]["bits_per_byte"]
    assert {p.name for p in (tmp_path / "runs/9_generate").iterdir()} == {"ladder.png"}
    assert result["peaks"] == {"bytes/s": 1e11}


def test_some_rungs_alone(call, ladder, folder):
    code, stdout, _ = call(9, *ladder, "--rungs", "2", "1", "--max-new-tokens", "3")
    names = re.findall(r"^([\dH]\w* \w+)[\w ]*  +\d+\.\d ", stdout, re.M)
    assert code == 0
    assert names == ["0 whole", "1 cache", "2 fixed", "HF fp32", "0 again"]
    _, stdout, _ = call(
        9, *ladder, "--rungs", "0", "--max-new-tokens", "99"
    )  # the block size is 64
    assert "greedy: 56 new tokens" in stdout and "0 again" in stdout


def test_without_a_compiler_the_rest_is_measured(call, ladder, monkeypatch):
    monkeypatch.setattr("common.speed.why_not_compile", lambda device: "no compiler")
    code, stdout, _ = call(9, *ladder, "--rungs", "2", "3")
    assert code == 0 and "skipped: no compiler" in stdout and "2 fixed cache  " in stdout


def test_what_the_ladder_calls_fp32_is_fp32(monkeypatch):
    """Of a prompt too, on a device with native bf16: its tokens are compared strictly."""
    script, ids = load_script(9), torch.arange(5)[None]
    monkeypatch.setattr(script, "autocast_dtype", lambda device: torch.bfloat16)
    model = tiny(64, 300)
    with torch.no_grad():
        logits = [script.small(model, bits)(ids)[0] for bits in (32, 16)]
        torch.testing.assert_close(logits[0], model(ids)[0], rtol=1e-5, atol=1e-5)
        assert (logits[1] - logits[0]).abs().max() > 1e-4


@pytest.mark.parametrize("cache", ["FixedCache", "GrowingCache"])
def test_a_wrong_cache_is_caught(call, ladder, monkeypatch, cache):
    monkeypatch.setattr(f"common.decode.{cache}.update", lambda self, k, v, positions: (k, v))
    with pytest.raises(AssertionError, match="cache: other tokens than 0 whole text's in fp32"):
        call(9, *ladder, "--rungs", "1", "2")


def a_ladder() -> DecodeLadder:
    """Of a model that has no doubt: its logits are those of token 1."""

    def model(ids):
        return one_hot(torch.ones_like(ids), 9).float(), None

    return DecodeLadder(model, torch.zeros(1, 3, dtype=torch.int64))


def rung(name: str, ms: float, n: int = 30, **values) -> DecodeRung:
    return DecodeRung(name, ms=[50.0, *[ms] * (n - 1)], ids=[[1] * n], **values)


def test_the_arithmetic_of_the_ladder(capsys):
    table = a_ladder()
    table.add(first := rung("0 first", 10.0, bytes_read=10**8, bits_per_byte=1.5))
    batch = rung("1 batch", 20.0, B=8, bytes_read=10**9, bits_per_byte=1.52)
    batch.ids = [[1] * 30] * 8
    table.add(batch, first)
    assert first.tokens_per_s == pytest.approx(100) and batch.tokens_per_s == pytest.approx(400)
    assert first.bandwidth == pytest.approx(0.1) and batch.bandwidth == pytest.approx(0.5)
    assert batch.times_first == batch.times_previous == pytest.approx(4)
    assert capsys.readouterr().out.splitlines()[-1].split() == [
        "1", "batch", "20.0", "±0.0%", "400", "4.00", "4.00", "50", "50%", "100%", "+0.0200"
    ]  # fmt: skip
    assert table.fastest() is first  # of one text
    slow = rung("2 slow", 10.0)
    slow.ms[2:5] = [1.0, 500.0, 500.0]  # among the slowest and fastest tenths: cut
    table.add(slow)
    assert slow.median_ms == 10 and "±" in capsys.readouterr().out and max(slow.timed) == 10
    other = rung("3 other", 10.0, dtype="8 bits")
    other.ids = [[1] * 15 + [2] * 15]
    table.add(other)
    assert other.same_ids == 0.5
    other.dtype = "float32"
    with pytest.raises(AssertionError, match="3 other: other tokens"):
        table.add(other)


def test_every_text_of_a_batch_is_compared():
    table = a_ladder()
    table.add(rung("0 first", 10.0))
    batch = rung("1 batch", 20.0, B=2)
    batch.ids = [[1] * 30, [1] * 29 + [2]]
    with pytest.raises(AssertionError, match="1 batch: other tokens"):
        table.add(batch)


def test_other_tokens_after_a_tie_are_no_error():
    """Rounding decides there."""
    table = a_ladder()
    table.model = lambda ids: (torch.tensor([2.0, 2.00001, 1.0]).expand(1, ids.size(1), 3), None)
    table.add(rung("0 first", 10.0))
    other = rung("1 other", 10.0)
    other.ids = [[1] * 29 + [0]]
    table.add(other)
    assert other.same_ids == pytest.approx(29 / 30)


# Texts.


def test_a_prompt_and_its_continuation(call, folder):
    model = from_hugging_face(str(folder))
    options = ("--model", str(folder), "--prompt", "To be", "--max-new-tokens", "20")
    code, stdout, _ = call(9, *options, "--temperature", "0")
    assert code == 0 and "decoding: eager, fp32" in stdout
    assert stdout.endswith("\nTo be" + continued(model, "To be", 20, 0) + "\n")
    code, stdout, _ = call(9, *options, "--seed", "7", "--samples", "2")
    one, two = (continued(model, "To be", 20, 0.8, 50, seed) for seed in (7, 8))
    assert stdout.endswith(f"\nTo be{one}\nTo be{two}\n") and one != two
    code, stdout, _ = call(9, *options, "--seed", "7", "--stop", one[9:12])
    assert stdout.endswith(f"\nTo be{one[: one.index(one[9:12])]}\n")
    code, stdout, _ = call(9, *options, "--seed", "7", "--top-p", "1e-9")
    assert stdout.endswith("\nTo be" + continued(model, "To be", 20, 0) + "\n")


def test_a_text_beyond_the_block_size(call, folder):
    prompt = "one two three four five six seven eight " * 7
    assert len(gpt2_tokenizer().encode_ordinary(prompt.strip())) == 56
    options = ("--model", str(folder), "--prompt", prompt.strip(), "--max-new-tokens", "200")
    code, stdout, _ = call(9, *options)
    assert code == 0 and len(gpt2_tokenizer().encode_ordinary(stdout)) > 200


def test_compiled_if_it_pays(call, folder, monkeypatch):
    options = ("--model", str(folder), "--prompt", "To be")
    assert "eager, fp32" in call(9, *options, "--max-new-tokens", "5")[1]
    asked = (*options, "--max-new-tokens", "5", "--compile", "yes")
    assert "compiled, weights of 8 bits" in call(9, *asked)[1]
    long = (*options, "--max-new-tokens", "500", "--samples", "2")
    monkeypatch.setattr("common.talk.Voice.continue_text", lambda self, text, seed: [f"{seed}"])
    code, stdout, _ = call(9, *long)
    assert stdout.endswith("compiled, weights of 8 bits\nTo be42\nTo be43\n")
    assert "eager, fp32" in call(9, *long, "--compile", "no")[1]
    monkeypatch.setattr("common.speed.why_not_compile", lambda device: "no compiler")
    assert "eager, fp32 (no compiler)" in call(9, *long)[1]


def test_the_newest_weights_of_a_run(call, folder, trained, tmp_path):
    run = shutil.copytree(trained, tmp_path / "run")
    (newest,) = checkpoints(run)
    saved = run / "checkpoints" / newest
    model = checkpoint.load_model(saved)
    for name, value in load_file(saved / "model.safetensors").items():
        assert torch.equal(model.state_dict()[name], value)
    assert model.lm_head.weight is model.transformer.wte.weight and not model.training
    assert model.config.vocab_size == 1024 and model.config.block_size == 8

    options = ("--prompt", "the", "--max-new-tokens", "9", "--temperature", "0")
    here = ("--model", "run", *options)
    expected = "\nthe" + continued(model, "the", 7, 0)
    stdout = call(9, *here)[1]
    assert f"model: run/checkpoints/{newest}\n" in stdout and expected in stdout
    shutil.copytree(folder, run / "hf")
    exported = "\nthe" + continued(from_hugging_face(str(folder)), "the", 9, 0) + "\n"
    for seconds, words in ((-9, "run/checkpoints"), (9, "run/hf\n")):
        at = saved.stat().st_mtime + seconds
        os.utime(run / "hf/config.json", (at, at))
        stdout = call(9, *here)[1]
        assert f"model: {words}" in stdout and (exported in stdout) == (seconds > 0)
    shutil.rmtree(run / "checkpoints")
    assert exported in call(9, *here)[1]
    assert exported in call(9, "--model", str(folder), *options)[1]


def test_offline_gpt2_is_random_and_others_are_refused(call, refused, monkeypatch):
    from common.model import GPTConfig

    monkeypatch.setattr("common.presets.preset", lambda name: GPTConfig(1, 1, 8, 16))
    code, stdout, _ = call(9, "--prompt", "To be", "--max-new-tokens", "3")
    assert code == 0 and "a random GPT-2 of 124M" in stdout
    assert max(map(len, stdout.split("decoding")[0].splitlines())) <= 80
    refused("no folder is called gpt2-xl, and the Hub can't be reached", 9, "--model", "gpt2-xl")


def test_bad_input(refused, folder, ladder, trained, tmp_path):
    (tmp_path / "nothing").mkdir()
    foreign = tmp_path / "foreign"
    to_hugging_face(tiny(64, 300, n_layer=1), foreign, {})
    tokenizer = json.loads((foreign / "tokenizer.json").read_text())
    vocab = tokenizer["model"]["vocab"]
    vocab["!"], vocab["?"] = vocab["?"], vocab["!"]
    (foreign / "tokenizer.json").write_text(json.dumps(tokenizer))
    refused("has no config.json", 9, "--model", "./nothing")
    refused("does not exist", 9, "--model", "./gone")
    model = ("--model", str(folder))
    refused("65 tokens long, the model's block size is 64", 9, *model, "--prompt", "a" + " a" * 64)
    refused("--prompt is empty", 9, *model, "--prompt", "")
    refused("--stop is empty: give a character or more", 9, *model, "--prompt", "a", "--stop", "")
    for top_p in ("0", "-1", "1.5", "nan"):
        refused(f"--top-p is {float(top_p)}", 9, *model, "--top-p", top_p)
    refused("--rungs 9: give some of 0 to 7", 9, *ladder, "--rungs", "9")
    refused("--rungs", 9, *ladder, "--rungs")
    refused("2 new tokens are too few to time", 9, *ladder, "--max-new-tokens", "2")
    refused("--eval-tokens is 1: give 2 or more", 9, *ladder, "--eval-tokens", "1")
    words = "foreign has 300 ids that are not GPT-2's first ones"
    refused(words, 9, "--model", "foreign", "--prompt", "a")
    (foreign / "tokenizer.json").unlink()
    refused("foreign has no tokenizer.json", 9, "--model", "foreign", "--prompt", "a")
    refused("--json gone/l.json can't be written", 9, *ladder, "--json", "gone/l.json")
    refused("does not exist", 9, *ladder, "--data", "gone.txt")
    run = shutil.copytree(trained, tmp_path / "run")
    with next((run / "checkpoints").glob("step_*/model.safetensors")).open("ab") as file:
        file.write(b"x")
    code_words = "all 1 checkpoints in run/checkpoints are damaged"
    refused(code_words, 9, "--model", "run", "--prompt", "a")


# A conversation.


class Terminal:
    """The script at a terminal of its own."""

    def __init__(self, *options: str):
        self.ours, self.its = pty.openpty()
        self.before = termios.tcgetattr(self.its)
        env = os.environ | {"TERM": "dumb", "HF_HUB_OFFLINE": "1"}
        self.process = subprocess.Popen(
            [sys.executable, str(SCRIPTS[9]), *options], env=env,
            stdin=self.its, stdout=self.its, stderr=self.its, preexec_fn=self._control,
        )  # fmt: skip
        self.shown = ""

    def _control(self) -> None:
        os.setsid()
        fcntl.ioctl(self.its, termios.TIOCSCTTY, 0)
        signal.signal(signal.SIGINT, signal.default_int_handler)

    def type(self, text: str) -> None:
        os.write(self.ours, text.encode())

    def until(self, words: str, seconds: float = 60) -> str:
        """What is shown from here on, up to words."""
        end = time.monotonic() + seconds
        while words not in self.shown:
            if not select.select([self.ours], [], [], max(0, end - time.monotonic()))[0]:
                self.process.kill()
                raise AssertionError(f"no {words!r} after {self.shown!r}")
            self.shown += os.read(self.ours, 4096).decode(errors="replace")
        part, self.shown = self.shown.split(words, 1)
        return part

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        os.close(self.ours)
        os.close(self.its)


def test_a_conversation(folder):
    terminal = Terminal(
        "--model", str(folder), "--interactive", "--compile", "no", "--device", "cpu",
        "--max-new-tokens", "20000", "--stop", "> ",
    )  # fmt: skip
    try:
        terminal.until("\n> ")
        terminal.type("To be")
        terminal.until("To be")
        time.sleep(0.3)  # a signal just before readline waits for a key would wait for one, too
        terminal.type("\x03")  # drops the line
        terminal.until("\n> ")
        for name in ("ROMEO:", "JULIET:"):
            terminal.type(f"{name}\n")
            terminal.until(f"{name}\r\n")
            while len(terminal.shown) < 20:
                terminal.shown += os.read(terminal.ours, 1).decode(errors="replace")
            terminal.type("\x03")  # ends the answer
            cut = terminal.until("\n> ")
            assert 20 <= len(cut) < 20000  # a token has a character or more
        terminal.type("\x04")  # ends the session
        assert terminal.process.wait(20) == 0
        assert "Traceback" not in terminal.shown
        assert termios.tcgetattr(terminal.its) == terminal.before
    finally:
        terminal.close()
