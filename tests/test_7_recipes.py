"""Stage 7: recipes, and the options of a run, which follow from them."""

import json
import shutil
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import load_script
from helpers import TINY, finished_run, one_thread, only_train

from common.init import tie_weights
from common.kit.cli import UserError, duration
from common.model import GPT
from common.presets import preset
from common.run.ranks import Ranks
from common.run.recipes import RECIPES, resolve


@pytest.fixture(autouse=True)
def short(monkeypatch, quick_peak):
    only_train(monkeypatch)
    with one_thread():
        yield


@pytest.mark.parametrize(
    "name, millions, batch, lr",
    [
        ("125m", 125, 0.5, 6.0e-4), ("350m", 356, 0.5, 3.0e-4), ("760m", 760, 0.5, 2.5e-4),
        ("1.3b", 1316, 1, 2.0e-4), ("2.7b", 2652, 1, 1.6e-4), ("6.7b", 6658, 2, 1.2e-4),
        ("13b", 12853, 2, 1.0e-4),
    ],
)  # fmt: skip
def test_the_recipes_are_table_2_1_of_gpt3s_paper(name, millions, batch, lr):
    recipe = RECIPES[f"gpt3-{name}"]
    with torch.device("meta"):
        model = tie_weights(GPT(preset(recipe["model"], recipe["block_size"])))
    assert round(sum(p.numel() for p in model.parameters()) / 1e6) == millions
    assert recipe["total_batch_tokens"] == batch * 2**20 and recipe["lr"] == lr
    assert recipe["block_size"] == 2048
    assert recipe["total_batch_tokens"] % (8 * recipe["batch_size"] * 2048) == 0  # 8 GPUs
    assert recipe["steps"] * recipe["total_batch_tokens"] == pytest.approx(260e9, rel=1e-5)


@pytest.mark.parametrize("name", [name for name in RECIPES if name.startswith("gpt")])
def test_a_recipe_fits_a_gpu_of_80_gb_on_paper(name):
    """Bytes of a rank. A weight: 4, with its gradient, two moments and DDP's bucket 20; on 8 ranks
    that shard it, 2. A block's activations in 16 bits without scores: 34 · T · B · C (Korthikanti
    et al., 2022, section 4.1). A logit: 2, its gradient 2, and 4 in fp32."""
    recipe = RECIPES[name]
    config, tokens = preset(recipe["model"]), recipe["batch_size"] * recipe["block_size"]
    with torch.device("meta"):
        weights = sum(p.numel() for p in tie_weights(GPT(config)).parameters())
    per_weight = 2 if weights > 5e9 else 20
    activations = 34 * tokens * config.n_embd * config.n_layer
    total = per_weight * weights + activations + 8 * tokens * 50304
    assert 20e9 < total < 75e9  # some is left for the compiler and the kernels


def resolved(device: str = "cpu", saved: dict | None = None, **options):
    """Stage 7's options, resolved; nothing is measured on the device."""
    setting = {"dtype": "float32", "attention": "formula", "compile": "no"}
    options = load_script(7).Options(**setting | options)
    return resolve(options, saved, Ranks(torch.device(device)))


@pytest.mark.parametrize("device", ["cpu", "cuda", "mps"])
def test_the_laptops_recipe_is_the_default_on_every_device(device):
    options = resolved(device)
    assert options.recipe == "laptop"
    assert {name: getattr(options, name) for name in RECIPES["laptop"]} == RECIPES["laptop"]


@pytest.mark.parametrize("recipe, warmup_steps", [
    ("gpt3-125m", 715), ("gpt3-13b", 179), ("laptop", 200),
])  # fmt: skip
def test_the_warm_up_is_375_million_tokens_or_a_tenth_of_the_steps(recipe, warmup_steps):
    assert resolved(recipe=recipe).warmup_steps == warmup_steps


def test_options_win_over_the_recipe_and_a_recipe_may_be_a_file(call, text_file):
    Path("best.toml").write_text('model = "1x1x16"\nlr = 0.5\nsteps = 2\nblock-size = 16\n')
    options = ("--batch-size", "2", "--total-batch-tokens", "32", *TINY[8:14], "--eval-tokens", "9")
    code, stdout, stderr = call(7, "--recipe", "best.toml", "--lr", "0.25", *options,
                                "--data", str(text_file), "--out", "run")  # fmt: skip
    assert code == 0, stderr
    config = json.loads(Path("run/config.json").read_text())
    assert config["recipe"] == "best.toml" and config["lr"] == 0.25 and config["block_size"] == 16
    assert (config["clip"], config["optimizer"]) == (1.0, "adamw")  # neither's: the default
    assert "lr=0.25" in stdout and "model='1x1x16'" in stdout


def test_a_file_that_leaves_something_open(refused, text_file):
    """It does not get the laptop's learning rate, which is one for Muon."""
    Path("two.toml").write_text('model = "1x1x16"\nsteps = 2\n')
    words = "two.toml lacks batch_size, block_size, lr, total_batch_tokens: add them, or give them"
    refused(words, 7, "--recipe", "two.toml", "--data", str(text_file))


def test_fine_tuning_takes_a_files_numbers_but_not_another_recipes(monkeypatch):
    pretrained = SimpleNamespace(hugging_face_config=lambda name: SimpleNamespace(vocab_size=50257))
    monkeypatch.setitem(sys.modules, "common.pretrained", pretrained)
    Path("mine.toml").write_text("\n".join(f"{k} = {v}" for k, v in {
        "lr": 1e-5, "steps": 7, "block_size": 64, "batch_size": 2, "total_batch_tokens": 128,
    }.items()))  # fmt: skip
    found = resolved(init_from="gpt2", recipe="mine.toml")
    assert (found.lr, found.steps, found.weight_decay) == (1e-5, 7, 0.1)
    Path("mine.toml").write_text("lr = 1e-5")
    with pytest.raises(UserError, match="mine.toml lacks batch_size, steps, total_batch_tokens"):
        resolved(init_from="gpt2", recipe="mine.toml", block_size=8)
    for recipe in (None, "gpt3-125m", "laptop"):
        found = resolved(init_from="gpt2", recipe=recipe)
        assert (found.lr, found.model, found.optimizer) == (3e-5, None, "adamw")


def test_auto_is_decided_once_and_saved_with_the_run(call, text_file, monkeypatch):
    monkeypatch.setattr("common.speed.autocast_dtype", lambda device: None)
    monkeypatch.setattr("common.speed.why_not_flash", lambda *_: None)
    monkeypatch.setattr("common.speed.why_not_compile", lambda device: "there is no compiler")
    auto = ("--dtype", "auto", "--attention", "auto", "--compile", "auto")
    options = (*TINY, *auto, "--data", str(text_file), "--steps", "2", "--out", "run")
    assert call(7, *options, "--stop-at", "1")[0] == 0
    config = json.loads(Path("run/config.json").read_text())
    decided = {name: config[name] for name in ("dtype", "attention", "compile")}
    assert decided == {"dtype": "float32", "attention": "flash", "compile": "no"}
    for name in ("autocast_dtype", "why_not_flash", "why_not_compile"):
        monkeypatch.setattr(f"common.speed.{name}", lambda *_: 1 / 0)  # must not be asked again
    code, stdout, stderr = call(7, "--resume", "--out", "run")
    assert code == 0, stderr
    assert "dtype='float32', attention='flash', compile='no'" in " ".join(stdout.split())


# Options that make no sense are one line, before any work.


@pytest.mark.parametrize(
    "words, options",
    {
        "give 96, or another --batch-size": ("--total-batch-tokens", "100"),
        "give 16, or another --batch-size": ("--total-batch-tokens", "3"),
        "--lr is 0": ("--lr", "0"),
        "--lr is nan": ("--lr", "nan"),
        "--clip is -1": ("--clip", "-1"),
        "--clip is nan": ("--clip", "nan"),
        "--dropout is 1": ("--dropout", "1"),
        "--keep is 0": ("--keep", "0"),
        "--stop-at is 0": ("--stop-at", "0"),
        "--warmup-steps is -1": ("--warmup-steps", "-1"),
        "--weight-decay is -1.0": ("--weight-decay", "-1.0"),
        "--weight-decay is nan": ("--weight-decay", "nan"),
        "--weight-decay is inf": ("--weight-decay", "inf"),
        "--prompt is empty": ("--prompt", ""),
        "--recipe gpt4 is none of laptop": ("--recipe", "gpt4"),
        "--recipe  is none of": ("--recipe", ""),
        "no preset is called 'gpt5'": ("--model", "gpt5"),
        "--vocab-size is 1000: give 50257, or a multiple of 128": ("--vocab-size", "1000"),
        "--vocab-size is 256: give 50257, or": ("--vocab-size", "256"),
        "--lr-floor is 1.5: give 0 to 1": ("--lr-floor", "1.5"),
        "start it with torchrun": ("--shard",),
        "brings its own model": ("--init-from", "gone"),
        "exclude each other": ("--resume", "--restart"),
        "fine-tuning needs a model to start from": ("--recipe", "fine-tuning"),
        "the learning rate is 0 from step 9 on": ("--steps", "9", "--stop-at", "10"),
    }.items(),
)
def test_bad_options(refused, text_file, words, options):
    refused(words, 7, *TINY, "--data", str(text_file), *options)
    assert not Path("runs").exists()


def test_token_files_need_the_whole_vocabulary(call, refused):
    np.save("ids.npy", np.arange(5000, dtype=np.uint16))
    words = "ids of all 50257 tokens, more than 1024: give --vocab-size 50257, or a large"
    refused(words, 7, *TINY, "--data", "ids.npy")
    options = (*TINY, "--data", "ids.npy", "--vocab-size", "50257", "--steps", "1", "--out", "run")
    assert call(7, *options)[0] == 0


@pytest.mark.parametrize(
    "line, words",
    {
        "learning_rate = 1": "--learning-rate",
        "steps = 2.5": "--steps",
        "attention = 'foo'": "--attention",
        "batch_size = true": "--batch",
        "compile = 3": "--compile",
        "dtype = 'int8'": "--dtype",
        "lr = 'x'": "--lr",
        "lr = -1": "--lr is -1",
        "out = 'x'": "bad.toml has out",
        "restart = true": "bad.toml has restart",
        "steps = ": "no TOML file",
    }.items(),
)
def test_bad_recipes(refused, text_file, line, words):
    Path("bad.toml").write_text(line + "\n")
    refused(words, 7, *TINY[2:4], "--data", str(text_file), "--recipe", "bad.toml")
    assert not Path("runs").exists()


def test_a_disk_without_room_is_said_before_the_first_step(refused, text_file, monkeypatch):
    usage = shutil._ntuple_diskusage(10**9, 10**9, 1000)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    refused("has room for 0.0", 7, *TINY, "--data", str(text_file))
    assert not Path("runs").exists()


def test_room_is_asked_for_all_checkpoints_and_the_export(call, text_file, monkeypatch):
    """The best checkpoint, and one more, since the oldest goes after the newest has come."""
    asked = []
    monkeypatch.setattr("common.run.resume.check_room", lambda folder, *need: asked.append(need))
    options = (*TINY, "--data", str(text_file), "--steps", "1", "--keep", "3", "--out", "run")
    assert call(7, *options)[0] == 0
    sizes = {path.name: path.stat().st_size for path in Path("run/checkpoints").glob("*/*")}
    expected = 5 * sum(sizes.values()) + sizes["model.safetensors"]
    assert asked == [(pytest.approx(expected, rel=0.02), "5 checkpoints and the export")]


# With a run that is resumed, the options are the run's.


@pytest.fixture(scope="module")
def stopped(text_file, tmp_path_factory) -> Path:
    """A run of 4 steps that was stopped after 2."""
    folder = tmp_path_factory.mktemp("stopped") / "run"
    return finished_run(folder, *TINY, "--data", str(text_file), "--steps", "4", "--stop-at", "2")


@pytest.fixture
def run(stopped) -> Path:
    """A copy of it."""
    return shutil.copytree(stopped, Path("run"))


@pytest.mark.parametrize(
    "words, options",
    {
        "has model 1x1x16, not gpt-micro": ("--model", "gpt-micro"),
        "has total_batch_tokens 32, not 64": ("--total-batch-tokens", "64"),
        "has block_size 8, not 16": ("--block-size", "16"),
        "has dropout 0.0, not 0.1": ("--dropout", "0.1"),
        "has seed 1337, not 1": ("--seed", "1"),
        "has vocab_size 1024, not 384": ("--vocab-size", "384"),
        "has optimizer muon, not adamw": ("--optimizer", "adamw"),
        "has recipe laptop, not gpt2-124m": ("--recipe", "gpt2-124m"),
    }.items(),
)
def test_what_would_make_it_another_run_is_refused(refused, run, words, options):
    refused(words, 7, "--out", "run", "--resume", *options)


def test_other_options_may_change(call, run):
    code, stdout, stderr = call(7, "--out", "run", "--resume", "--batch-size", "1", "--lr", "1e-3")
    assert code == 0 and "batch_size=1" in stdout and "lr=0.001" in stdout, stderr
    config = json.loads((run / "checkpoints/step_00000004/config.json").read_text())
    assert config["batch_size"] == 1 and config["lr"] == 1e-3 and config["steps"] == 4


@pytest.mark.parametrize("seconds, words", [(7, "7 s"), (89, "89 s"), (95, "1.6 min"),
                                            (3599, "60 min"), (7200, "2.0 h")])  # fmt: skip
def test_durations_have_a_fitting_unit(seconds, words):
    assert duration(seconds) == words
