"""Command lines: what --help shows, and what is said of an option that is wrong."""

import re
from dataclasses import MISSING, fields

import pytest
from conftest import SCRIPTS, load_script

from common.kit.cli import run
from common.kit.options import parse
from common.shards import __main__ as shards


@pytest.mark.parametrize("stage", [*SCRIPTS, "shards"])
def test_the_help_shows_each_default_on_at_most_60_lines(stage, monkeypatch, capsys):
    script = shards if stage == "shards" else load_script(stage)
    monkeypatch.setenv("COLUMNS", "80")
    with pytest.raises(SystemExit) as end:
        run(script.main, script.Options, ["--help"])
    text = capsys.readouterr().out
    assert end.value.code == 0 and len(text.splitlines()) <= 60
    assert text.startswith(script.__doc__[:40])
    entries = {}
    groups = re.split(r"^(\S.*):$", text, flags=re.MULTILINE)[1:]
    for heading, group in zip(groups[::2], groups[1::2], strict=True):
        assert max(map(len, group.splitlines())) <= 80
        for entry in re.split(r"^  (?=\S)", group, flags=re.MULTILINE)[1:]:
            name = entry.split()[0].removeprefix("--").replace("-", "_").lower()
            entries[name] = heading, " ".join(entry.split())
    assert list(entries) == [field.name for field in fields(script.Options)]
    for field in fields(script.Options):
        heading, entry = entries[field.name]
        assert re.search(r" [a-z]+:? [a-z]+", entry), entry  # what to do
        if field.default in (None, ()):
            assert "by default" in heading + entry or field.name == "export"
        elif field.default not in (MISSING, False):
            assert "(default: " in entry


OURS = {
    "learning_rate": ("1e-3", "--lr"),
    "max_iters": ("9", "--steps"),
    "out_dir": ("x", "--out"),
    "eval_interval": ("9", "--eval-every"),
    "gradient_accumulation_steps": ("8", "--total-batch-tokens"),
    "n_layer": ("4", "--model 4x2x128"),
    "wandb_log": ("True", "--track wandb"),
}


@pytest.mark.parametrize("name", OURS)
def test_nanogpts_names_are_answered_with_ours(refused, name):
    value, ours = OURS[name]
    spelled = name.replace("_", "-")
    refused(f"no option is called --{spelled}: give {ours} (", 7, f"--{name}={value}")
    refused(f"no option is called --{spelled}: give {ours} (", 7, f"--{name}", value)


def test_what_a_script_lacks_is_not_offered(call):
    assert "--eval-every" not in call(3, "--eval-interval", "9")[2]
    assert "--model 4x2x128" not in call(8, "--n-layer", "x")[2]  # the search's own option


def test_nanogpts_values_are_read():
    Options = load_script(6).Options
    assert parse(Options, ["--compile=False", "--dtype", "bf16"]).compile == "no"
    assert parse(Options, ["--compile=False", "--dtype", "bf16"]).dtype == "bfloat16"


def test_values_of_each_kind_are_read():
    options = parse(load_script(6).Options, ["--betas", "0.8", "0.9", "--batch_size=3"])
    assert options.betas == (0.8, 0.9) and options.batch_size == 3 and options.steps == 250
    options = parse(load_script(8).Options, ["--lr", "1", "2e-3", "--n-head"])
    assert options.lr == (1.0, 0.002) and options.n_head == () and options.n_layer == (1, 2, 4)
    options = parse(load_script(7).Options, ["--resume", "--prompt", "-- x_y", "--out=a_b"])
    assert options.resume and not options.restart and options.recipe is None
    assert options.prompt == "-- x_y" and options.out == "a_b"


def test_a_wrong_choice_is_answered_with_all_choices_in_order(call):
    error = call(7, "--dtype", "int8")[2]
    choices = error.split("choose from ")[1].split(")")[0]
    assert re.findall(r"\w+", choices) == ["auto", "float32", "bfloat16", "float16"]
    assert "None" not in error and "/" not in error


@pytest.mark.parametrize("words, given", {
    "no option is called --resumee: give --resume (": ["--resumee"],
    "no option is called x.py (": ["x.py"],
    "--resume: ignored explicit argument 'no' (": ["--resume=no"],
    "--lr: expected one argument (": ["--lr"],
}.items())  # fmt: skip
def test_other_words_are_named(refused, words, given):
    refused(words, 7, *given)
