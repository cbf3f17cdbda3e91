"""Which exercises are done: one line for each.

python -m exercises           # all of them
python -m exercises 01 02     # only these
"""

import os
import sys
from pathlib import Path
from textwrap import fill

from exercises.marking import NAMES, mark


def main(numbers: list[str]) -> None:
    if {"-h", "--help"} & set(numbers):
        print(__doc__)
        return
    wanted = {Path(number).stem.zfill(2): number for number in numbers}  # 4, 04 or 04_top_k.py
    names = [name for name in NAMES if {name, name[:2]} & wanted.keys() or not wanted]
    if unknown := wanted.keys() - {*names, *(name[:2] for name in names)}:
        hint = f"give some of 01 to {NAMES[-1][:2]}"
        print(f"error: there is no exercise {wanted[min(unknown)]}: {hint}", file=sys.stderr)
        sys.exit(2)
    left = []
    for name in names:
        found = mark(name)
        line = found.line if found.state == "wrong" else found.state
        print(fill(f"{name:<22}{line}", 79, subsequent_indent=" " * 22))
        left += [name] if found.line else []
    here = f"; the next one is exercises/{left[0]}.py" if left else ""
    print(f"{len(names) - len(left)} of {len(names)} done{here}")


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except BrokenPipeError:  # `python -m exercises | head`: the reader has gone
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(141)
