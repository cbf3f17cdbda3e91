"""common.report: each part's table in one file, or a line that says why there is none."""

import os
from types import SimpleNamespace

import pytest
import torch
from conftest import load_script

from common.kit.cli import run
from common.kit.options import parse
from common.report import __main__ as report

CPU = torch.device("cpu")
# Scripts that print their options, but for one that fails and one that trains.
SCRIPTS = {
    "1_parity.py": "print('logits', *sys.argv[1:])",
    "5_ladder.py": "print('0 fp32'); sys.exit('error: no rung fits')",
    "7_train.py": """
out = Path(sys.argv[sys.argv.index("--out") + 1])
out.mkdir()
rows = [f"{n},{9 - n / 10},{50 if n < 4 else 100 + n},2000,0.5" for n in range(30)]
Path(out, "metrics.csv").write_text("\\n".join(["step,loss,ms,tokens_per_s,mfu", *rows, "30,,,,"]))
""",
    "9_decode.py": "print('decoding in', Path.cwd())",
}


@pytest.fixture
def scripts(monkeypatch, tmp_path):
    """A course of such scripts, and no trial of the device's."""
    for name, code in SCRIPTS.items():
        (tmp_path / name).write_text(f"import os, sys\nfrom pathlib import Path\n{code}")
    monkeypatch.setattr(report, "ROOT", tmp_path)
    return tmp_path


def test_a_file_with_every_table(scripts, capsys):
    run(report.main, report.Options, ["--device", "cpu"])
    (file,) = (scripts / "docs/machines").iterdir()
    assert file.suffix == ".md" and f"{os.cpu_count()}-cores" in file.name
    text = file.read_text()
    for words in (
        f"| packages | torch {torch.__version__.split('+')[0]}",
        "```\nlogits --samples 1 --eval-tokens 2048 --device cpu\n```",
        "## Training speed, stage 5\n\nFailed: error: no rung fits\n",
        "## Training, B = 8, stage 7\n\n`7_train.py --steps 30 --batch-size 8 --out run`, in ",
        "| 116.5 | ±10.7% | 2,000 | 50.0% | 9.000, 6.100 |",  # of the 26 steps from 104 to 129 ms
        "decoding in …\n",
    ):
        assert words in text, text
    assert "5 of 5: Decoding speed, stage 9" in capsys.readouterr().out


def test_ctrl_c_keeps_the_parts_before(scripts, monkeypatch):
    """A terminal sends it to the part, too."""
    run_part = report.run_part

    def interrupted(stage, options, device):
        if stage == 5:
            raise KeyboardInterrupt
        return run_part(stage, options, device)

    monkeypatch.setattr(report, "run_part", interrupted)
    with pytest.raises(SystemExit) as stop:
        run(report.main, report.Options, ["--device", "cpu"])
    assert stop.value.code == 130
    (file,) = (scripts / "docs/machines").iterdir()
    assert "logits --samples" in file.read_text() and "Training speed" not in file.read_text()


@pytest.mark.parametrize("gib, rows, tokens", [(79, (32, 64), 2**19), (15, (4, 8), 2**17),
                                               (None, (4, 8), 2**11)])  # fmt: skip
def test_the_scripts_take_the_options(monkeypatch, gib, rows, tokens):
    """In sizes for an H100, a T4 and a CPU."""
    properties = SimpleNamespace(total_memory=(gib or 0) * 2**30)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: properties)
    todo = report.parts(torch.device("cuda:0") if gib else CPU)
    options = [parse(load_script(stage).Options, given.split()) for _, stage, given in todo]
    trainings = [o for part, o in zip(todo, options, strict=True) if part[1] == 7]
    assert tuple(o.batch_size for o in trainings) == rows
    from common.run.recipes import RECIPES

    ladders = [o.batch_size for part, o in zip(todo, options, strict=True) if part[1] == 5]
    assert ladders == ([16, rows[1]] if gib else [4])
    for o in trainings:
        total = o.total_batch_tokens or RECIPES[o.recipe or "laptop"]["total_batch_tokens"]
        assert total == tokens and total % (o.batch_size * (1024 if gib else 128)) == 0


def test_the_kernels_of_attention():
    """A CPU has no cuDNN, which is a line too."""
    lines = report.attention_table(CPU, (1, 2, 8, 4)).splitlines()
    found = dict(line.strip("| ").split(" | ") for line in lines[2:])
    assert [*found] == ["the formula", "SDPA's choice", *report.KERNELS]
    assert found["CUDNN_ATTENTION"].startswith("No viable backend")
    assert all(float(found[name]) > 0 for name in ("the formula", "FLASH_ATTENTION", "MATH"))


def test_a_folder_that_can_not_be_made(scripts, capsys):
    """Said before any part runs."""
    (scripts / "file").touch()
    with pytest.raises(SystemExit) as stop:
        run(
            report.main, report.Options, ["--device", "cpu", "--out", str(scripts / "file/mine.md")]
        )
    out, err = capsys.readouterr()
    assert stop.value.code == 2 and "can't be created" in err and "1 of 5" not in out
