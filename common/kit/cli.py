"""A script's command line: options from a dataclass (tyro), and errors.

A user's mistake is one line on stderr and exit code 2. Ctrl-C is exit code 130. Anything else is a
bug and keeps its traceback.
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


class UserError(Exception):
    """A mistake that the user can correct. One line: what was wrong, and what to change."""


def run(main: Callable, options_class: type, argv: Sequence[str] | None = None) -> None:
    """Parse argv (default: the command line) into options_class and call main with it.

    Raises SystemExit: 2 on a UserError or an option that does not parse, 130 on Ctrl-C.
    """
    argv = sys.argv[1:] if argv is None else list(argv)
    # Lines appear at once, in pipes too; a character that the terminal lacks becomes a "?".
    sys.stdout.reconfigure(line_buffering=True, errors="replace")
    try:
        options = parse(options_class, argv)
        check_positive(options, "batch_size", "block_size", "steps")
        check_lr_and_seed(options)
        main(options)
    except UserError as error:
        if os.environ.get("RANK", "0") != "0":  # rank 0 usually reports the same error, and
            time.sleep(5)  # torchrun then ends this process before it does
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
    except BrokenPipeError:  # `script | head`: the reader has gone
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise SystemExit(141) from None
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        print(f"error: the disk is full: make room ({error.strerror})", file=sys.stderr)
        raise SystemExit(2) from None


def is_out_of_memory(error: RuntimeError) -> bool:
    """Whether memory is full. On a CPU only the message tells."""
    return isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in str(error)


def check_positive(options, *names: str) -> None:
    """Raises UserError if one of the named options is below 1. Options may be missing or None."""
    for name in names:
        for value in _values(options, name):
            if value < 1:
                raise UserError(f"--{name.replace('_', '-')} is {value}: give 1 or more")


def check_lr_and_seed(options) -> None:
    """Raises UserError for an impossible learning rate or seed."""
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
    """tyro's parser. A wrong option is a UserError of one line, in place of tyro's box, and --help
    shows the script's docstring above the options."""
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
    """tyro's message about a wrong value, shortened."""
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
    """Roughly how long, in a suitable unit."""
    for unit, size in (("h", 3600), ("min", 60)):
        if seconds >= 1.5 * size:
            return f"{seconds / size:.{0 if seconds >= 10 * size else 1}f} {unit}"
    return f"{seconds:.0f} s"


def quoted(text: str) -> str:
    """A sample in lines of at most 80 columns, each marked."""
    mark = {"initial_indent": "  | ", "subsequent_indent": "  | "}
    return "\n".join(fill(line, 79, **mark) or "  |" for line in text.splitlines())
