"""A script's options: a dataclass, filled in from the command line. Its comments are the help."""

import argparse
import difflib
import inspect
import math
import os
import re
import sys
from collections.abc import Sequence
from dataclasses import MISSING
from importlib.util import find_spec
from textwrap import fill
from types import NoneType
from typing import Literal, get_args, get_origin, get_type_hints


class UserError(Exception):
    """A mistake that the user can fix. One line: what was wrong, and what to change."""


def is_installed(module: str) -> bool:
    """Whether a package is installed; a folder of its name is not one."""
    return getattr(find_spec(module), "origin", None) is not None


def is_vocab_size(n: int) -> bool:
    return n == 50257 or n in range(384, 50257, 128)


COUNTS = """batch_size block_size steps total_batch_tokens stop_at eval_every checkpoint_every keep
    samples max_new_tokens top_k stride hellaswag_limit n_layer n_head n_embd shard_tokens"""
# What to give, how to test it, and for which options, whose names mean the same in all scripts.
LIMITS = {
    "1 or more": (lambda value: value >= 1, COUNTS),
    "2 or more": (lambda value: value >= 2, "eval_tokens"),
    "0 or more": (lambda value: 0 <= value < math.inf, "weight_decay warmup_steps temperature"),
    "more than 0, and finite": (lambda value: 0 < value < math.inf, "lr"),
    "more than 0, or inf": (lambda value: value > 0, "clip"),
    "0 to 1": (lambda value: 0 <= value <= 1, "lr_floor"),
    "0 or more, less than 1": (lambda value: 0 <= value < 1, "dropout betas"),
    "more than 0, less than 1": (lambda value: 0 < value < 1, "val_fraction"),
    "more than 0, at most 1": (lambda value: 0 < value <= 1, "top_p"),
    "50257, or a multiple of 128 from 384 to 50176": (is_vocab_size, "vocab_size"),
    f"0 to {2**63 - 1}": (lambda value: 0 <= value < 2**63, "seed"),
    "no, or install that package first": (lambda name: name == "no" or is_installed(name), "track"),
    "a character or more": (lambda value: value != "", "prompt stop data init_from storage"),
}


def check(options) -> None:
    """Raises UserError for an option of these names with an impossible value, also in a list. None
    is accepted."""
    for limit, (fits, names) in LIMITS.items():
        for name in names.split():
            value = getattr(options, name, None)
            for one in value if isinstance(value, tuple) else (value,):
                if one is not None and not fits(one):
                    found = "empty" if one == "" else one
                    raise UserError(f"--{name.replace('_', '-')} is {found}: give {limit}")


# Our options, and nanoGPT's names for them; nanoGPT's values, and ours.
NAMES = {
    "--lr": "learning-rate",
    "--lr-floor": "min-lr",
    "--steps": "max-iters lr-decay-iters",
    "--warmup-steps": "warmup-iters",
    "--clip": "grad-clip",
    "--betas": "beta1 beta2",
    "--data": "dataset",
    "--out": "out-dir",
    "--eval-every": "eval-interval",
    "--track wandb": "wandb-log",
    "--model 4x2x128": "n-layer n-head n-embd",
    "--total-batch-tokens": "gradient-accumulation-steps",
    "--samples": "num-samples",
    "--prompt": "start",
}
VALUES = {"False": "no", "True": "yes", "bf16": "bfloat16", "fp16": "float16", "fp32": "float32"}


class Parser(argparse.ArgumentParser):
    """argparse's parser, but a mistake raises UserError instead of exiting."""

    def error(self, message: str):
        raise UserError(f"{message} ({self.prog} --help lists the options)")


def parse(options_class: type, argv: Sequence[str]):
    """Parse argv into a dataclass. In its source, each line `name: kind = default  # help` is an
    option, and a line `# title` begins a group. An option without a default is a positional
    argument. --help shows the options, and the title and commands of the module's docstring.
    Raises UserError."""
    title, *rest = sys.modules[options_class.__module__].__doc__.strip("\n").split("\n\n")
    parser = Parser(
        description="\n\n".join([fill(title, 79), *(text for text in rest if text[0] == " ")]),
        formatter_class=lambda prog: argparse.RawDescriptionHelpFormatter(prog, 2, 28),
        prog=os.path.basename(sys.argv[0]),
        usage=argparse.SUPPRESS,
        allow_abbrev=False,
        add_help=False,
    )
    parser.add_argument("-h", "--help", action="help", help=argparse.SUPPRESS)
    group, kinds, names = parser, get_type_hints(options_class), []
    for line in inspect.getsource(options_class).splitlines():
        if heading := re.fullmatch("    # (.+)", line):
            group = parser.add_argument_group(heading[1])
        elif option := re.fullmatch(r"    (\w+): .*?(?:  # (.+))?", line):
            name, default = option[1], options_class.__dataclass_fields__[option[1]].default
            names.append(name if default is MISSING else "--" + name.replace("_", "-"))
            group.add_argument(names[-1], **_argument(name, kinds[name], default, option[2] or ""))
    given = [re.sub(r"^--[\w-]+(?==|$)", lambda m: m[0].replace("_", "-"), word) for word in argv]
    found, unknown = parser.parse_known_args(given)
    if unknown:
        name = unknown[0].split("=")[0]
        ours = next((ours for ours, theirs in NAMES.items() if name[2:] in theirs.split()), "")
        if ours.split(" ")[0] not in names:
            ours = "".join(difflib.get_close_matches(name, names, 1, 0.8))
        parser.error(f"no option is called {name}" + (ours and f": give {ours}"))
    values = {name: tuple(v) if isinstance(v, list) else v for name, v in vars(found).items()}
    return options_class(**values)


def _argument(name: str, kind, default, text: str) -> dict:
    """argparse's arguments for an option: of a kind, of that or None, or a tuple of it. The
    dataclass has the defaults."""
    if kind is not bool and default not in (None, (), MISSING):
        shown = " ".join(map(str, default)) if isinstance(default, tuple) else str(default)
        text += f" (default: {shown.strip() or repr(default)})"
    how = {"help": text.replace("%", "%%"), "default": argparse.SUPPRESS}
    if kind is bool:
        return how | {"action": "store_true"}
    if NoneType in get_args(kind):
        kind = get_args(kind)[0]
    if get_origin(kind) is tuple:
        kind, end = get_args(kind)
        how["nargs"] = "*" if end is ... else 2
    if get_origin(kind) is Literal:
        return how | {"type": lambda word: VALUES.get(word, word), "choices": get_args(kind)}
    return how | {"type": kind, "metavar": (name if default is MISSING else kind.__name__).upper()}
