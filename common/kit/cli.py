"""A script's command line: run its main function, and turn errors into one line.

A user's mistake is one line on stderr and exit code 2. Ctrl-C is exit code 130. Anything else is a
bug and keeps its traceback.
"""

import errno
import os
import re
import sys
import time
from collections.abc import Callable, Sequence
from textwrap import fill

import torch

from common.kit.options import UserError, check, is_installed, parse


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
        if os.environ.get("RANK", "0") != "0":  # rank 0 usually prints the same error, and
            time.sleep(5)  # torchrun then ends this process before it does
        print("error:", line.replace("\n", " "), file=sys.stderr)
        raise SystemExit(2) from None


# Errors of the file system or the disk that no change to the code would fix.
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
FORBIDDEN = (errno.EACCES, errno.EPERM, errno.EROFS, errno.EIO)
NO_SUCH_PLACE = (errno.EISDIR, errno.ENOTDIR, errno.ELOOP, errno.ENAMETOOLONG)


def in_one_line(error: UserError | RuntimeError | OSError) -> str | None:
    """The text of an error that the user can do something about; None for a bug."""
    if isinstance(error, OSError) and error.errno in (*FULL, *FORBIDDEN, *NO_SUCH_PLACE):
        hint = ": make room" if error.errno in FULL else ""
        return f"{error.filename2 or error.filename or 'the disk'}: {error.strerror}{hint}"
    if isinstance(error, RuntimeError) and is_out_of_memory(error):
        return "out of memory: give a smaller --batch-size, --block-size or --model"
    if str(error).startswith("Could not determine home directory"):  # pathlib's, for ~name/
        return "a path begins with ~ and the name of no user: give another path"
    return str(error) if isinstance(error, UserError) else None


def is_out_of_memory(error: RuntimeError) -> bool:
    """Whether memory is full. Only the message tells on a CPU, on Apple's GPUs, in CUDA's own
    errors, and if Linux killed another process for lack of memory."""
    words = "can't allocate memory|out of memory|Invalid buffer size|process pool was terminated"
    return bool(re.search(words, str(error))) or isinstance(error, torch.OutOfMemoryError)


def require(module: str, package: str, what: str) -> None:
    """Raises UserError if the package that has this module is not installed."""
    if not is_installed(module):
        raise UserError(f"{what} needs {package}, which is not installed: pip install {package}")


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
