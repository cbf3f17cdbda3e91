"""Which exercises are done: one line for each.

python -m exercises           # all of them
python -m exercises 01 02     # only these
"""

import os
import sys
from textwrap import fill

from exercises.marking import NAMES, mark


def main(numbers: list[str]) -> None:
    if {"-h", "--help"} & set(numbers):
        print(__doc__)
        return
    chosen = {n: [name for name in NAMES if n.zfill(2) in (name, name[:2])] for n in numbers}
    if unknown := [number for number, found in chosen.items() if not found]:
        wanted = f"give some of 01 to {NAMES[-1][:2]}"
        print(f"error: there is no exercise {unknown[0]}: {wanted}", file=sys.stderr)
        sys.exit(2)
    names = sorted(sum(chosen.values(), [])) or NAMES  # 4, 04 or 04_top_k
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
