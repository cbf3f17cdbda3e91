"""common.speedrun: a fixed text, a budget that holds everything, and a table that adds up."""

import csv
import json
import re
from statistics import mean

import pytest
from conftest import ROOT, load_script
from transformers import AutoModelForCausalLM, AutoTokenizer

from common.kit.cli import run
from common.run.recipes import RECIPES
from common.speedrun import __main__ as speedrun
from common.speedrun.__main__ import RECIPE

TINY = {
    "model": "1x2x32", "vocab_size": 384, "block_size": 16, "batch_size": 4, "lr": 1e-2,
    "total_batch_tokens": 64, "lr_floor": 0.0, "optimizer": "muon", "compile": "no",
}  # fmt: skip
RECORDS = ROOT / "docs" / "records"
FILES = sorted(RECORDS.glob("*.json"))


@pytest.fixture
def small(monkeypatch, tmp_path):
    """A run of seconds, on a short text."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(ROOT)
    monkeypatch.setattr(speedrun, "RECIPE", TINY)
    monkeypatch.setattr(speedrun, "matmul_peak", lambda device, dtype: 1e11)
    lines = "First to hear, and then to speak of it;\n" * 40
    monkeypatch.setattr(speedrun, "split_text", lambda name: (lines, lines[:400]))
    # What other tests of this process used counts as the time of the imports.
    monkeypatch.setattr(speedrun.time, "process_time", lambda: 1.0)
    return tmp_path / "runs/speedrun/nine-plays_1337"


def test_a_run_ends_within_its_budget_and_leaves_a_model(small, monkeypatch, capsys):
    monkeypatch.setattr(speedrun, "RESERVE", 5.0)
    monkeypatch.setattr(speedrun, "SECONDS", 9.0)
    run(speedrun.main, speedrun.Options, ["--device", "cpu"])
    printed = capsys.readouterr().out
    result = json.loads((small / "result.json").read_text())
    assert 2 < result["seconds"] < 9 and "does not count" not in printed
    assert result["steps"] > 100 and result["bits_per_byte"] < 1  # it knows 40 equal lines
    assert f"{result['bits_per_byte']:.4f} bits/byte" in printed.splitlines()[-1]
    assert max(map(len, printed.splitlines())) <= 80
    assert printed.count("  loss ") <= result["steps"] / 50 + 2
    with (small / "metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["step"] for row in rows if row["loss"]] == [*map(str, range(result["steps"]))]
    assert float(rows[-1]["val_loss"]) < 1
    tokenizer = AutoTokenizer.from_pretrained(small / "hf")
    model = AutoModelForCausalLM.from_pretrained(small / "hf")
    ids = tokenizer("First to hear, and", return_tensors="pt")["input_ids"]
    assert model.config.vocab_size == 384 and ids.max() < 384
    more = model.generate(ids, max_new_tokens=3, do_sample=False)[0]
    assert tokenizer.decode(more).startswith("First to hear, and th")
    assert "python -m common.speedrun" in (small / "hf/README.md").read_text()


def test_a_budget_of_work_is_training_time_by_this_machines_peak(small, monkeypatch, capsys):
    monkeypatch.setattr(speedrun, "WORK", 5e10)  # half a second at the peak of 1e11
    monkeypatch.setattr(speedrun, "SECONDS", 0.0)
    run(speedrun.main, speedrun.Options, ["--device", "cpu", "--budget", "work"])
    with (small / "metrics.csv").open() as file:
        rows = [row for row in csv.DictReader(file) if row["loss"]]
    assert 0.3 < sum(float(row["ms"]) for row in rows) / 1000 < 0.7
    lrs = [float(row["lr"]) for row in rows]  # a warm-up; then down to 0 with the time
    assert max(lrs) == pytest.approx(1e-2, rel=0.1) and lrs[0] < 9e-3 and lrs[-1] < 2e-3
    assert "5.00e+10 FLOPs" in capsys.readouterr().out


def test_too_little_time_is_said(small, monkeypatch, capsys):
    monkeypatch.setattr(speedrun, "SECONDS", 1.0)
    with pytest.raises(SystemExit):
        run(speedrun.main, speedrun.Options, ["--device", "cpu"])
    assert "s of preparation: run it again" in capsys.readouterr().err


def test_the_split_holds_out_a_play_and_is_always_the_same(tmp_path):
    train, val = speedrun.split_text("nine-plays")
    assert "PROSPERO" in val and "PROSPERO" not in train
    assert (len(train), len(val)) == (1_096_905, 92_103)
    shared = {line for line in val.splitlines() if len(line) > 30} & set(train.splitlines())
    assert not shared


# docs/records.md


def rows() -> dict[int, list[str]]:
    """The cells of the table of records, by number."""
    lines = re.findall(r"^\| (\d+) \|(.+)\|$", (ROOT / "docs/records.md").read_text(), re.M)
    return {int(number): [cell.strip() for cell in cells.split("|")] for number, cells in lines}


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_a_record_is_the_mean_of_three_seeds(path):
    record = json.loads(path.read_text())
    found = [one["bits_per_byte"] for one in record["runs"]]
    assert len({one["seed"] for one in record["runs"]}) >= 3
    assert all(one["seconds"] <= 300 for one in record["runs"])
    cells = rows()[int(path.stem)]
    assert f"{mean(found):.4f}" in cells and f"±{(max(found) - min(found)) / 2:.4f}" in cells
    assert cells[0] == record["what"]


def test_each_record_beats_the_last_by_more_than_their_spread():
    runs = [json.loads(path.read_text())["runs"] for path in FILES]
    found = [[one["bits_per_byte"] for one in three] for three in runs]
    assert sorted(rows()) == list(range(len(FILES)))
    for before, after in zip(found, found[1:], strict=False):
        half = [(max(three) - min(three)) / 2 for three in (before, after)]
        assert mean(before) - mean(after) > max(half)


def test_the_laptops_recipe_is_the_speedruns():
    shared = RECIPES["laptop"].keys() & RECIPE.keys()
    assert {k: RECIPES["laptop"][k] for k in shared} == {k: RECIPE[k] for k in shared}
    assert {"lr", "lr_floor", "weight_decay", "optimizer", "vocab_size", "model"} <= shared


def test_the_recipe_is_the_last_rows():
    assert json.loads(FILES[-1].read_text())["runs"][0]["recipe"] == RECIPE
    load_script(7).Options(**RECIPE)  # raises for what is no option
