"""A script's command line: options from a dataclass (tyro), and errors.

A user's mistake is one line on stderr and exit code 2. Ctrl-C is exit code 130. Anything else is a
bug and keeps its traceback.
"""

import contextlib
import errno
import io
import math
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


# What a system may say of a file or a disk, and no change of the code would mend.
OF_THE_SYSTEM = (
    errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EPERM, errno.EROFS, errno.EIO, errno.EISDIR,
    errno.ENOTDIR, errno.ELOOP, errno.ENAMETOOLONG,
)  # fmt: skip


def in_one_line(error: UserError | RuntimeError | OSError) -> str | None:
    """An error that the user can do something about; None for a bug."""
    if isinstance(error, OSError) and error.errno in OF_THE_SYSTEM:
        hint = ": make room" if error.errno in (errno.ENOSPC, errno.EDQUOT) else ""
        return f"{error.filename2 or error.filename or 'the disk'}: {error.strerror}{hint}"
    if isinstance(error, RuntimeError) and is_out_of_memory(error):
        return "the memory is full: give a smaller --batch-size, --block-size or --model"
    return str(error) if isinstance(error, UserError) else None


def is_out_of_memory(error: RuntimeError) -> bool:
    """Whether memory is full. On a CPU, on Apple's GPUs and in CUDA's own errors only the message
    tells."""
    messages = ("can't allocate memory", "out of memory", "Invalid buffer size")
    full = any(message in str(error) for message in messages)
    return full or isinstance(error, torch.OutOfMemoryError)


# Options have one name everywhere. What to give for each, how that is tested, and which they are.
LIMITS = {
    "1 or more": (lambda value: value >= 1, """batch_size block_size steps total_batch_tokens
        stop_at eval_every checkpoint_every keep samples max_new_tokens top_k stride
        hellaswag_limit n_layer n_head n_embd shard_tokens"""),
    "2 or more": (lambda value: value >= 2, "eval_tokens"),
    "0 or more": (lambda value: 0 <= value < math.inf, "weight_decay warmup_steps temperature"),
    "more than 0": (lambda value: 0 < value < math.inf, "lr"),
    "more than 0, or inf": (lambda value: value > 0, "clip"),
    "0 or more, less than 1": (lambda value: 0 <= value < 1, "dropout"),
    "more than 0, less than 1": (lambda value: 0 < value < 1, "val_fraction"),
    "more than 0, at most 1": (lambda value: 0 < value <= 1, "top_p"),
    f"0 to {2**63 - 1}": (lambda value: 0 <= value < 2**63, "seed"),
    "a character or more": (lambda value: value != "", "prompt stop data"),
}  # fmt: skip


def check(options) -> None:
    """Raises UserError for an option of these names with an impossible value: of a list, any. None
    is left alone."""
    for limit, (fits, names) in LIMITS.items():
        for name in names.split():
            value = getattr(options, name, None)
            for one in value if isinstance(value, tuple) else (value,):
                if one is not None and not fits(one):
                    found = "empty" if one == "" else one
                    raise UserError(f"--{name.replace('_', '-')} is {found}: give {limit}")


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
        raise UserError(f"{_plainly(stderr.getvalue())} (--help lists the options)") from None


# tyro's longer messages, and what to say instead.
PLAINLY = {
    r"'None', |, 'None'": "",
    r"Error parsing (\S+): .*?('[^']*').*\bINT\b.*": r"\1 can't be \2: give a whole number",
    r"Error parsing (\S+): .*?('[^']*').*\bFLOAT\b.*": r"\1 can't be \2: give a number",
    r"invalid choice (.*) for argument '(\S+)'.*\((.*?)\).*":
        r"\2 can't be \1: give one of \3",
}  # fmt: skip


def _plainly(box: str) -> str:
    """The message in tyro's box, below its title, as one line."""
    rows = re.sub(r"\x1b\[[0-9;]*m|[─━╭╮╰╯│┃]|-{5,}", " ", box).splitlines()[1:]
    words = " ".join(" ".join(rows).split("For full helptext")[0].split())
    for pattern, plain in PLAINLY.items():
        words = re.sub(pattern, plain, words)
    return words


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
