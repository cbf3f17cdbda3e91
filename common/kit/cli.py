"""A script's command line: options from a dataclass (argparse), and errors.

A user's mistake is one line on stderr and exit code 2. Ctrl-C is exit code 130. Anything else is a
bug and keeps its traceback.
"""

import argparse
import difflib
import errno
import inspect
import math
import os
import re
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import MISSING
from importlib.util import find_spec
from textwrap import fill
from types import NoneType
from typing import Literal, get_args, get_origin, get_type_hints

import torch


class UserError(Exception):
    """A mistake that the user can fix. One line: what was wrong, and what to change."""


def run(main: Callable, options_class: type, argv: Sequence[str] | None = None) -> None:
    """Parse argv (default: the command line) into options_class and call main with it.

    Raises SystemExit: 2 on a UserError or an option that does not parse, 130 on Ctrl-C.
    """
    argv = sys.argv[1:] if argv is None else list(argv)
    # Lines appear at once, even in pipes; a character that the terminal lacks becomes a "?".
    sys.stdout.reconfigure(line_buffering=True, errors="replace")
    try:
        options = parse(options_class, argv)
        check(options)
        main(options)
    except KeyboardInterrupt:
        print("\nstopped by Ctrl-C", file=sys.stderr)
        raise SystemExit(130) from None
    except BrokenPipeError:  # `script | head`: the reader has gone
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise SystemExit(141) from None
    except (UserError, RuntimeError, OSError) as error:
        line = in_one_line(error)
        if line is None:
            raise
        if os.environ.get("RANK", "0") != "0":  # rank 0 usually reports the same error, and
            time.sleep(5)  # torchrun then ends this process before it does
        print("error:", line.replace("\n", " "), file=sys.stderr)
        raise SystemExit(2) from None


# Errors of the file system or the disk that no change to the code would fix.
OF_THE_SYSTEM = (
    errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EPERM, errno.EROFS, errno.EIO, errno.EISDIR,
    errno.ENOTDIR, errno.ELOOP, errno.ENAMETOOLONG,
)  # fmt: skip


def in_one_line(error: UserError | RuntimeError | OSError) -> str | None:
    """The text of an error that the user can do something about; None for a bug."""
    if isinstance(error, OSError) and error.errno in OF_THE_SYSTEM:
        hint = ": make room" if error.errno in (errno.ENOSPC, errno.EDQUOT) else ""
        return f"{error.filename2 or error.filename or 'the disk'}: {error.strerror}{hint}"
    if isinstance(error, RuntimeError) and is_out_of_memory(error):
        return "the memory is full: give a smaller --batch-size, --block-size or --model"
    return str(error) if isinstance(error, UserError) else None


def is_out_of_memory(error: RuntimeError) -> bool:
    """Whether memory is full. Only the message tells on a CPU, on Apple's GPUs, in CUDA's own
    errors, and if Linux killed another process for lack of memory."""
    messages = ("can't allocate memory", "out of memory", "Invalid buffer size",
                "process pool was terminated")  # fmt: skip
    full = any(message in str(error) for message in messages)
    return full or isinstance(error, torch.OutOfMemoryError)


# What to give, how to test it, and for which options, whose names mean the same in all scripts.
LIMITS = {
    "1 or more": (lambda value: value >= 1, """batch_size block_size steps total_batch_tokens
        stop_at eval_every checkpoint_every keep samples max_new_tokens top_k stride
        hellaswag_limit n_layer n_head n_embd shard_tokens"""),
    "2 or more": (lambda value: value >= 2, "eval_tokens"),
    "0 or more": (lambda value: 0 <= value < math.inf, "weight_decay warmup_steps temperature"),
    "more than 0": (lambda value: 0 < value < math.inf, "lr"),
    "more than 0, or inf": (lambda value: value > 0, "clip"),
    "0 to 1": (lambda value: 0 <= value <= 1, "lr_floor"),
    "0 or more, less than 1": (lambda value: 0 <= value < 1, "dropout"),
    "more than 0, less than 1": (lambda value: 0 < value < 1, "val_fraction"),
    "more than 0, at most 1": (lambda value: 0 < value <= 1, "top_p"),
    "50257, or a multiple of 128 from 384 to 50176":
        (lambda n: n == 50257 or 256 < n < 50257 and n % 128 == 0, "vocab_size"),
    f"0 to {2**63 - 1}": (lambda value: 0 <= value < 2**63, "seed"),
    "no, or install that package first":
        (lambda value: value == "no" or getattr(find_spec(value), "origin", None), "track"),
    "a character or more": (lambda value: value != "", "prompt stop data"),
}  # fmt: skip


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


# nanoGPT's names and values, and ours.
NAMES = {
    "learning-rate": "--lr", "min-lr": "--lr-floor", "max-iters": "--steps",
    "lr-decay-iters": "--steps", "warmup-iters": "--warmup-steps",
    "grad-clip": "--clip", "beta1": "--betas", "beta2": "--betas", "dataset": "--data",
    "out-dir": "--out", "eval-interval": "--eval-every", "wandb-log": "--track wandb",
    "n-layer": "--model 4x2x128", "n-head": "--model 4x2x128", "n-embd": "--model 4x2x128",
    "gradient-accumulation-steps": "--total-batch-tokens", "num-samples": "--samples",
}  # fmt: skip
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
        prog=os.path.basename(sys.argv[0]), usage=argparse.SUPPRESS,
        allow_abbrev=False, add_help=False,
    )  # fmt: skip
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
        ours = NAMES.get(name[2:], "")
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


def duration(seconds: float) -> str:
    """Roughly how long, in a suitable unit."""
    for unit, size in (("h", 3600), ("min", 60)):
        if seconds >= 1.5 * size:
            return f"{seconds / size:.{0 if seconds >= 10 * size else 1}f} {unit}"
    return f"{seconds:.0f} s"


def quoted(text: str) -> str:
    """A sample in lines of at most 80 columns, each marked."""
    mark = {"initial_indent": "  | ", "subsequent_indent": "  | "}
    return "\n".join(fill(line, 79, **mark) or "  |" for line in text.splitlines())
