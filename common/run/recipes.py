"""GPT-3's sizes, batches and learning rates, one line each, and the options of a run, which are
filled in from them and saved with the run."""

import tomllib
from dataclasses import asdict, replace
from pathlib import Path
from textwrap import fill

from common.kit.options import UserError, check, parse
from common.optim import check_plan
from common.presets import preset
from common.run.ranks import Ranks
from common.speed import best_setting
from common.tokenizer import VOCAB_SIZE


def recipe(model: str, T: int, B: int, tokens: int, lr: float, **others) -> dict:
    """Options by name. GPT-3's learning rate warms up over 375 million tokens and decays over 260
    billion (appendix B). Its training continued to 300 billion, as with --stop-at above --steps."""
    options = {"model": model, "block_size": T, "batch_size": B, "total_batch_tokens": tokens}
    return options | {"lr": lr, "steps": round(260e9 / tokens)} | others


# With --init-from these replace a named recipe's options: trained weights need smaller updates.
FINE_TUNING = {"lr": 3e-5, "lr_floor": 0.1, "weight_decay": 0.1, "optimizer": "adamw"}
FINE_TUNING_EVALS = {"eval_every": 50, "checkpoint_every": 50, "eval_tokens": 2**14}
# Five minutes with Muon and a small vocabulary: the best of docs/records.md.
LAPTOP = {"vocab_size": 1024, "optimizer": "muon", "weight_decay": 1.2, "lr_floor": 0.0}
LAPTOP_LENGTH = {"steps": 2000, "eval_every": 250, "checkpoint_every": 250, "eval_tokens": 2**14}
# Model, T, B for one GPU of 80 GB (measured for gpt2-124m, estimated for the others), tokens per
# batch, learning rate: GPT-3 paper, table 2.1. Left out: GPT-3's batch size that grows at the
# start, and its sparse attention in every other layer.
RECIPES = {
    "laptop": recipe("4x4x256", 128, 16, 2**11, 1e-2, **LAPTOP, **LAPTOP_LENGTH),
    "fine-tuning": recipe("", 128, 8, 2**10, **FINE_TUNING, steps=300, **FINE_TUNING_EVALS),
    "gpt2-124m": recipe("gpt2", 1024, 32, 2**19, 6.0e-4, steps=19073),  # 10 billion tokens
    "gpt3-125m": recipe("gpt3-125m", 2048, 16, 2**19, 6.0e-4),
    "gpt3-350m": recipe("gpt3-350m", 2048, 8, 2**19, 3.0e-4),
    "gpt3-760m": recipe("gpt3-760m", 2048, 8, 2**19, 2.5e-4),
    "gpt3-1.3b": recipe("gpt3-1.3b", 2048, 4, 2**20, 2.0e-4),
    "gpt3-2.7b": recipe("gpt3-2.7b", 2048, 2, 2**20, 1.6e-4),
    "gpt3-6.7b": recipe("gpt3-6.7b", 2048, 2, 2**21, 1.2e-4),  # with --shard from here on
    "gpt3-13b": recipe("gpt3-13b", 2048, 1, 2**21, 1.0e-4),
}
# Options that a recipe leaves open.
DEFAULTS = (
    dict(data="tinyshakespeare", vocab_size=VOCAB_SIZE, dropout=0.0, seed=1337, prompt="\n")
    | dict(optimizer="adamw", weight_decay=0.1, clip=1.0, lr_floor=0.1)
    | dict(eval_every=100, eval_tokens=2**20, checkpoint_every=500, keep=2)
    | dict(dtype="auto", attention="auto", compile="auto")
)
# With other values of these, a resumed run would be a different run.
OF_THE_MODEL = ("recipe", "model", "init_from", "block_size", "vocab_size", "dropout")
UNCHANGEABLE = (*OF_THE_MODEL, "optimizer", "total_batch_tokens", "seed")
# Options that belong to a command, and are not saved with the run.
HELLASWAG = ("eval_hellaswag", "hellaswag_file", "hellaswag_limit")
OF_THE_COMMAND = ("out", "resume", "restart", "stop_at", "track", "device", "shard", *HELLASWAG)


def run_config(options) -> dict:
    """The options that are saved with the run, by name."""
    return {k: v for k, v in asdict(options).items() if k not in OF_THE_COMMAND}


def read_recipe(name: str, options_class: type) -> dict:
    """A recipe's options by name. Those of a TOML file are checked as if given on the command line.
    Raises UserError."""
    if name in RECIPES:
        return RECIPES[name]
    try:
        text = Path(name).expanduser().read_bytes().decode()
        found = {option.replace("-", "_"): value for option, value in tomllib.loads(text).items()}
    except (OSError, ValueError) as error:
        why = error.strerror if isinstance(error, OSError) else error
        names = ", ".join(RECIPES)
        raise UserError(f"--recipe {name} is none of {names}, and no TOML file: {why}") from None
    if others := sorted(set(found) & {"recipe", "init_from", *OF_THE_COMMAND}):
        raise UserError(f"{name} has {', '.join(others)}: give that on the command line")
    try:
        given = parse(options_class, [f"--{k.replace('_', '-')}={v}" for k, v in found.items()])
    except UserError as error:
        raise UserError(f"{name}: {error}") from None
    return {option: getattr(given, option) for option in found}


def fine_tuning(recipe: dict, init_from: str, is_file: bool) -> dict:
    """A recipe's options to fine-tune the model init_from with. A named recipe is for a new model,
    a file is for this run."""
    from common.pretrained import hugging_face_config  # it takes seconds to import

    vocab_size = min(hugging_face_config(init_from).vocab_size, VOCAB_SIZE)
    tuning = FINE_TUNING | {"vocab_size": vocab_size}
    if is_file:
        return tuning | recipe | {"model": None}
    return recipe | tuning | {"block_size": min(recipe["block_size"], 1024), "model": None}


def resolve(options, saved: dict | None, ranks: Ranks):
    """Stage 7's options with every None filled in: from `saved`, the options of the run that is
    resumed, or from the recipe, DEFAULTS and the device. Raises UserError for numbers that do not
    fit, and for UNCHANGEABLE options that differ from the saved ones."""
    if options.init_from and options.model:
        raise UserError("--init-from brings its own model: leave --model out")
    given = {name: value for name, value in asdict(options).items() if value is not None}
    if saved:
        base = saved
        if unknown := ", ".join(saved.keys() - run_config(options).keys()):
            raise UserError(f"the run has options of another version, {unknown}: start another run")
        for name in UNCHANGEABLE:
            if name in given and given[name] != base[name]:
                found = f"{name} {base[name]}, not {given[name]}"
                raise UserError(f"the run has {found}: leave it out, or start another run")
    else:
        usual = "fine-tuning" if options.init_from else "laptop"
        name = options.recipe if options.recipe is not None else usual
        found = read_recipe(name, type(options))
        if options.init_from:
            found = fine_tuning(found, options.init_from, is_file=name not in RECIPES)
        elif name == "fine-tuning":
            raise UserError("--recipe fine-tuning needs a model to start from: give --init-from")
        base = DEFAULTS | {"recipe": name} | found
    if "data" in given and Path(given["data"]).expanduser().exists():
        given["data"] = str(Path(given["data"]).expanduser().resolve())  # to resume from anywhere
    options = replace(options, **(base | given))
    check(options)
    may_lack = ("warmup_steps", "model" if options.init_from else "init_from")
    missing = [k for k, v in run_config(options).items() if v is None and k not in may_lack]
    if names := ", ".join(sorted(missing)):
        raise UserError(f"{options.recipe} lacks {names}: add them, or give them as options")
    if options.stop_at and options.stop_at > options.steps and options.lr_floor == 0:
        end = f"the learning rate is 0 from step {options.steps} on: give more --steps"
        raise UserError(f"--stop-at is {options.stop_at}, and {end}, or an --lr-floor")
    if options.warmup_steps is None:
        options.warmup_steps = min(round(375e6 / options.total_batch_tokens), options.steps // 10)
    B, T = options.batch_size, options.block_size
    check_plan(options, B, T, ranks.world_size)
    choices = (options.dtype, options.attention, options.compile)
    setting = best_setting(preset(options.model or "gpt2"), B, T, ranks.device, *choices)
    options = replace(options, **setting.names())
    new = run_config(options).items() if saved else ()
    if changed := [f"{k} {saved.get(k)} → {v}" for k, v in new if saved.get(k) != v]:
        print(fill(f"changed: {', '.join(changed)}", 79, subsequent_indent="  "))
    return options
