"""Where a reader stands: a line an exercise.

python -m exercises           # all of them
python -m exercises 01 02     # only these
"""

import sys
from textwrap import fill

from exercises.marking import NAMES, mark


def main(numbers: list[str]) -> None:
    if unknown := set(numbers) - {name[:2] for name in NAMES}:
        sys.exit(f"error: there is no exercise {min(unknown)}: give some of 01 to {NAMES[-1][:2]}")
    names = [name for name in NAMES if name[:2] in numbers or not numbers]
    marks = []
    for name in names:
        marks.append(mark(name))
        line = marks[-1].line if marks[-1].state == "wrong" else marks[-1].state
        print(fill(f"{name:<22}{line}", 79, subsequent_indent=" " * 22))
    n = sum(mark.state == "done" for mark in marks)
    print(f"{n} of {len(names)} done; pytest exercises/ says the same")


if __name__ == "__main__":
    main(sys.argv[1:])
