"""Stage 7: any checkpoint of a run as a folder in Hugging Face's format, without training."""

import csv
import resource
import shutil
from pathlib import Path

import pytest
import torch
from helpers import TINY, finished_run
from test_7_checkpoint import write
from transformers import AutoModelForCausalLM

from common.kit.cli import run
from common.run import checkpoint, export
from common.run.recipes import RECIPES

NEWEST, BEFORE = (Path(f"run/checkpoints/step_0000000{n}") for n in (4, 2))


@pytest.fixture(scope="module")
def whole(text_file, tmp_path_factory) -> Path:
    options = (*TINY, "--data", str(text_file), "--checkpoint-every", "2", "--eval-every", "2")
    return finished_run(tmp_path_factory.mktemp("whole") / "run", *options, "--steps", "4")


@pytest.fixture
def copy(whole) -> Path:
    return shutil.copytree(whole, Path("run"))


@pytest.fixture
def call(capsys):
    """call(*words) → (exit code, stdout, stderr)."""

    def call(*words: str):
        code = 0
        try:
            run(export.main, export.Options, words)
        except SystemExit as stop:
            code = stop.code
        return code, *capsys.readouterr()

    return call


@pytest.mark.parametrize("source, path", [("run", NEWEST), (str(BEFORE), BEFORE)])
def test_the_export_is_the_checkpoint(copy, call, source, path):
    code, stdout, stderr = call(source, "new/folder")
    assert code == 0 and f"exported: {path}\n" in stdout and stderr == ""
    ids = torch.arange(8)[None]
    with torch.no_grad():
        expected = checkpoint.load_model(path)(ids)[0][..., :50257]
        found = AutoModelForCausalLM.from_pretrained("new/folder")(ids).logits
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("step", [2, 4])
def test_the_card_is_what_the_log_says(copy, call, step):
    assert call(f"run/checkpoints/step_{step:08d}", "new")[0] == 0
    card = Path("new/README.md").read_text()
    with open("run/metrics.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    val = next(row for row in rows if row["val_loss"] and int(row["step"]) == step)
    assert f"- steps: {step} of 32 tokens\n" in card and "- data: counting.txt\n" in card
    assert f"- validation loss: {float(val['val_loss']):.4f} at step {step}\n" in card
    assert f"- bits per byte: {float(val['bits_per_byte']):.4f} at step {step}\n" in card
    last = min(step, 3)  # of the steps from 0 on
    loss = next(row["loss"] for row in rows if row["loss"] and int(row["step"]) == last)
    assert f"- training loss: {float(loss):.4f} at step {last}\n" in card


def test_the_cards_command_makes_the_run_again(copy, call, text_file, monkeypatch):
    assert call("run", "new")[0] == 0
    command = Path("new/README.md").read_text().split("```sh\npython 7_gpt2_train_long_run.py ")[1]
    words = command.split("\n```")[0].split()
    shutil.copy(text_file, ".")  # a card names the file, not whose folder it was in
    again = finished_run(Path("again").absolute(), *words)
    weights = [checkpoint.load_model(p / "checkpoints/step_00000004") for p in (copy, again)]
    for one, two in zip(*(model.parameters() for model in weights), strict=True):
        assert torch.equal(one, two)


@pytest.mark.parametrize("recipe", ["gpt3-125m", "mine.toml"])
def test_the_cards_command_of_a_fine_tuned_model_says_what_is_not_usual(tmp_path, recipe):
    """These are the numbers of a recipe, but not what --init-from would take from it."""
    given = {"steps": 2000, "lr": RECIPES.get(recipe, RECIPES["laptop"])["lr"]}
    config = {"data": "text", "total_batch_tokens": 1024, "init_from": "gpt2", "recipe": recipe}
    command = export.facts(tmp_path, config | given, 3)["command"]
    for name, value in given.items():
        assert f"--{name} {value}" in command
    assert ("--recipe gpt3-125m" in command) == (recipe in RECIPES)


def test_a_full_disk_leaves_no_export(copy, call):
    """The system refuses to write files beyond a size, as it does when a disk is full."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, hard))
    try:
        code, _, stderr = call("run", "new")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert code == 2 and stderr.count("\n") == 1
    assert stderr.startswith("error: new can't be written: ")
    assert [path.name for path in Path().iterdir()] == ["run"]
    assert call("run", "new")[0] == 0


def test_a_log_that_a_crash_damaged_is_read(copy, call):
    with open("run/metrics.csv", "ab") as log:
        log.write(b"3,9.9\n\x80\xff")
    assert call("run", "new")[0] == 0


def test_what_can_not_be_exported_is_one_line(copy, call):
    def refused(words, *given):
        code, _, stderr = call(*given)
        assert code == 2 and stderr.count("\n") == 1 and words in stderr, stderr

    Path("empty").mkdir()
    refused("empty has no checkpoint: give a run of stage 7", "empty", "new")
    refused("not an empty folder", "run", "run")
    Path("trial").mkdir()
    write(Path("trial/checkpoints"), 10)  # its options are not stage 7's
    refused("is no checkpoint of stage 7", "trial", "new")
    (NEWEST / "model.safetensors").write_bytes(b"")
    refused("model.safetensors is not what was written", str(NEWEST), "new")
    code, stdout, _ = call("run", "new")
    assert code == 0 and f"exported: {BEFORE}" in stdout
