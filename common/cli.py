"""A script's command line: options from a dataclass (tyro), and one way to end it.

`run` gives every script the same manners: a mistake of the user's is one line on stderr and exit
code 2, Ctrl-C is exit code 130, and anything else is our mistake and keeps its traceback.
"""

import contextlib
import errno
import io
import os
import re
import shutil
import sys
import time
from collections.abc import Callable, Sequence
from textwrap import fill

import torch
import tyro

from common.model import ConfigError


class UserError(Exception):
    """Something the user can mend. Its text is one line: what was wrong, and what to change."""


def run(main: Callable, options_class: type, argv: Sequence[str] | None = None) -> None:
    """Parse argv (default: the command line) into options_class and call main with it.

    Raises SystemExit: 2 on a UserError, a ConfigError or an option that does not parse, 130 on
    Ctrl-C.
    """
    argv = sys.argv[1:] if argv is None else list(argv)
    # A line is seen when it is printed, in pipes too; a letter that a terminal lacks is a "?".
    sys.stdout.reconfigure(line_buffering=True, errors="replace")
    try:
        options = parse(options_class, argv)
        check_positive(options, "batch_size", "block_size", "steps")
        check_lr_and_seed(options)
        main(options)
    except (UserError, ConfigError) as error:
        if os.environ.get("RANK", "0") != "0":  # rank 0 most often says the same, and torchrun
            time.sleep(5)  # then ends this one, unheard
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(2) from None
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
        hint = "give a smaller --batch-size, --block-size or --model"
        print(f"error: the memory is full: {hint}", file=sys.stderr)
        raise SystemExit(2) from None
    except KeyboardInterrupt:
        print("\nstopped by Ctrl-C", file=sys.stderr)
        raise SystemExit(130) from None
    except BrokenPipeError:  # `script | head`: the reader has gone, which is no fault
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise SystemExit(141) from None
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        print(f"error: the disk is full: make room ({error.strerror})", file=sys.stderr)
        raise SystemExit(2) from None


def is_out_of_memory(error: RuntimeError) -> bool:
    """A GPU's full memory has a class of its own, a CPU's only its words."""
    return isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in str(error)


def check_positive(options, *names: str) -> None:
    """Raises UserError if one of the named options, where the script has it, is below 1."""
    for name in names:
        for value in _values(options, name):
            if value < 1:
                raise UserError(f"--{name.replace('_', '-')} is {value}: give 1 or more")


def check_lr_and_seed(options) -> None:
    """Raises UserError for a learning rate or a seed, where the script has it, of no use."""
    for lr in _values(options, "lr"):
        if not 0 < lr < float("inf"):
            raise UserError(f"--lr is {lr}: give more than 0")
    for seed in _values(options, "seed"):
        if not 0 <= seed < 2**63:
            raise UserError(f"--seed is {seed}: give 0 to {2**63 - 1}")


def _values(options, name: str) -> tuple:
    """An option's values: none, one, or those of a list."""
    value = getattr(options, name, None)
    return value if isinstance(value, tuple) else () if value is None else (value,)


def parse(options_class: type, argv: Sequence[str]):
    """tyro's parser, with its box of several lines about a wrong option made one line, and the
    script's docstring above its help. Raises UserError."""
    if {"-h", "--help"} & set(argv):
        for text in sys.modules[options_class.__module__].__doc__.strip("\n").split("\n\n"):
            command = text.startswith(" ")
            print(text if command else fill(text, shutil.get_terminal_size().columns), end="\n\n")
        return tyro.cli(options_class, args=argv, description="")
    stderr = io.StringIO()
    try:
        with contextlib.redirect_stderr(stderr):
            return tyro.cli(options_class, args=argv, description="")
    except SystemExit:
        box = re.sub(r"\x1b\[[0-9;]*m|[─━╭╮╰╯│┃]|-{5,}", " ", stderr.getvalue())
        words = " ".join(box.split("For full helptext")[0].split())
        words = re.sub(r"^(Unrecognized options|Parsing error|Value error) ", "", words)
        raise UserError(f"{_plainly(words)} (--help lists the options)") from None


def _plainly(words: str) -> str:
    """What tyro says of a value of the wrong kind, shorter."""
    if found := re.match(r"Error parsing (\S+): .*?('[^']*').*\b(INT|FLOAT)\b", words):
        option, value, kind = found.groups()
        return f"{option} can't be {value}: give a {'whole ' * (kind == 'INT')}number"
    found = re.match(r"Invalid choice .*?(\S+) for argument '(\S+)'.*?\((.*?)\)", words)
    if found:
        value, option, choices = found.groups()
        choices = choices.replace("'None', ", "").replace("'", "")
        return f"{option} can't be {value}: give one of {choices}"
    return words.removeprefix("Missing argument ")


def duration(seconds: float) -> str:
    """About how long, in the unit that one would say."""
    for unit, size in (("h", 3600), ("min", 60)):
        if seconds >= 1.5 * size:
            return f"{seconds / size:.{0 if seconds >= 10 * size else 1}f} {unit}"
    return f"{seconds:.0f} s"


def quoted(text: str) -> str:
    """A sample as lines that fit 80 columns, each with a mark."""
    mark = {"initial_indent": "  | ", "subsequent_indent": "  | "}
    return "\n".join(fill(line, 79, **mark) or "  |" for line in text.splitlines())
