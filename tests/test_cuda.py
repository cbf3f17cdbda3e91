"""What only a GPU can show: `pytest tests -m cuda`. Elsewhere all of this is skipped."""

import json
import math
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from conftest import SCRIPTS, run_script
from helpers import TINY, copy_as_killed, losses, state

from common.presets import preset
from common.speed import Setting, autocast, autocast_dtype, build

DEVICE = "cuda"
pytestmark = [
    pytest.mark.cuda,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="this machine has no CUDA GPU"),
]


@pytest.fixture
def ran(tmp_path):
    """ran(stage, *options) → what the script printed; it must end well."""

    def ran(stage: int, *options: str, launcher: tuple = ()) -> str:
        if launcher:
            command = [*launcher, str(SCRIPTS[stage]), *options, "--device", DEVICE]
            done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
        else:
            done = run_script(stage, *options, "--device", DEVICE, cwd=tmp_path)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    return ran


@pytest.fixture
def options(text_file) -> tuple[str, ...]:
    """Of a run of stage 7: 8 steps in fp32, with a checkpoint after 4."""
    return (*TINY, "--data", str(text_file), "--steps", "8", "--checkpoint-every", "4")


def assert_near(one: str, two: str) -> None:
    """The same training losses to 1e-3."""
    found, expected = losses(Path(one)), losses(Path(two))
    assert found.keys() == expected.keys() and len(found) == 8
    for step, loss in expected.items():
        assert float(found[step]) == pytest.approx(float(loss), abs=1e-3), step


def test_no_position_sees_its_future(ran):
    assert "the same, bit for bit" in ran(0)


def test_logits_are_hugging_faces(ran):
    """In fp32, to 1e-5 of the largest: the script ends with an error otherwise."""
    assert "logits of 256 tokens" in ran(1, "--samples", "1", "--eval-tokens", "512")


def test_every_rung_has_the_first_ones_loss(ran, text_file, tmp_path):
    ran(5, "--model", "2x4x256", "--batch-size", "4", "--block-size", "128", "--steps", "4",
        "--data", str(text_file), "--json", "ladder.json")  # fmt: skip
    rungs = json.loads((tmp_path / "ladder.json").read_text())["rungs"]
    before_ampere = torch.cuda.get_device_capability() < (8, 0)  # no TF32, and no bf16
    names = "".join(r["name"][0] for r in rungs)
    assert names == ("023456H0" if before_ampere else "01234567H0")
    assert all(abs(r["loss"] - rungs[0]["loss"]) < 0.02 for r in rungs)
    assert all(0 < r["peak_bytes"] < 2**34 for r in rungs)


def test_the_residual_stream_is_narrow():
    if autocast_dtype(torch.device(DEVICE)) is not torch.bfloat16:
        pytest.skip("this GPU has no bf16")
    ids, losses = torch.randint(50257, (2, 2, 64), device=DEVICE), []
    for narrow in (False, True):
        model = build(preset("2x4x128"), Setting(residual=narrow), 1).to(DEVICE)
        found = []
        model.transformer.h[1].register_forward_hook(lambda _, x, y, to=found: to.append(y.dtype))
        with autocast(ids.device, torch.bfloat16):
            losses.append(model(*ids)[1].item())
        assert found == [torch.bfloat16 if narrow else torch.float32]
    assert losses[1] == pytest.approx(losses[0], abs=0.02)


def test_fp16_is_trained_with_a_scaler(ran, options):
    ran(7, *options, "--dtype", "float16", "--out", "run")
    found = [float(loss) for loss in losses(Path("run")).values()]
    assert all(map(math.isfinite, found)) and found[-1] < found[0]
    assert state(Path("run"))["scaler"]["scale"] >= 1


@pytest.mark.parametrize("compile", ["no", "yes"])
def test_a_resumed_run_is_near_one_that_was_not_stopped(ran, options, compile):
    ran(7, *options, "--dropout", "0.2", "--compile", compile, "--out", "one")
    copy_as_killed(Path("one"), Path("two"))
    assert "new random generators" not in ran(7, "--resume", "--out", "two")
    assert_near("two", "one")


@pytest.mark.parametrize("more", [(), ("--shard",), ("--shard", "--compile", "yes")])
def test_one_rank_is_one_process(ran, options, more):
    """Over NCCL."""
    torchrun = (sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=1")
    options = (*options, "--optimizer", "adamw" if more else "muon")
    ran(7, *options, "--out", "one")
    assert "ranks: 1, nccl" in ran(7, *options, *more, "--out", "two", launcher=torchrun)
    assert_near("two", "one")


def test_every_rung_decodes_the_same_tokens(ran):
    """In fp32, with CUDA graphs too: the script ends with an error otherwise."""
    stdout = ran(9, "--rungs", "0", "1", "2", "3", "4", "--max-new-tokens", "24",
                 "--eval-tokens", "64")  # fmt: skip
    assert "3 compile" in stdout and "skipped" not in stdout


def test_a_full_gpu_is_one_line(tmp_path, text_file):
    """512 rows of 1024 tokens have 300 GB of attention's scores."""
    (tmp_path / "long.txt").write_text(text_file.read_text() * 250)
    options = ("--batch-size", "512", "--block-size", "1024", "--rungs", "0", "--data", "long.txt")
    done = run_script(5, *options, "--device", DEVICE, cwd=tmp_path)
    assert done.returncode == 2 and "0 fp32         skipped: out of memory" in done.stdout
    assert done.stderr.startswith("error: no rung fits in memory"), done.stderr
