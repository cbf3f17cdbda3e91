"""Before every line of Python that save runs, the folder is copied, as a kill would leave it."""

import os
import shutil
import sys
import tempfile
from pathlib import Path
from unittest.mock import patch

from exercises.marking import Wrong

OLD, NEW = b"the old checkpoint " * 20, b"the new checkpoint " * 20


def check(answer) -> None:
    with tempfile.TemporaryDirectory() as place:
        place = Path(place)
        check_order(answer, made(place / "order"))
        for state in states(answer, made(place / "run"), place):
            check_killed(answer, state)
        check_damage(answer, made(place / "damaged"))
        check_flush(answer, made(place / "flush"))


def made(folder: Path) -> Path:
    folder.mkdir()
    return folder


def check_order(answer, folder: Path) -> None:
    if (found := answer.newest(folder)) is not None:
        raise Wrong(f"in an empty folder newest finds {found}, not None")
    for step in (9, 10):
        answer.save(folder, step, OLD + bytes([step]))
    step, data = answer.newest(folder) or (None, None)
    if step == 9:
        raise Wrong("of steps 9 and 10, newest takes 9: compare the steps as numbers, not as text")
    if step != 10 or data != OLD + bytes([10]):
        raise Wrong(f"after steps 9 and 10 are saved, newest finds step {step}"
                    f"{', but other data' if step == 10 else ''}")  # fmt: skip


def states(answer, folder: Path, place: Path) -> list[Path]:
    """The folder, with step 10 in it, at each line of Python that runs while 20 is saved."""
    answer.save(folder, 10, OLD)
    copies, seen = [], set()

    def copy(frame, event, argument):
        if event == "line" and (state := files(folder)) not in seen:
            seen.add(state)
            copies.append(place / f"killed_{len(copies)}")
            shutil.copytree(folder, copies[-1])
        return copy

    before = sys.gettrace()
    sys.settrace(copy)
    try:
        answer.save(folder, 20, NEW)
    finally:
        sys.settrace(before)
    if answer.newest(folder) != (20, NEW):
        raise Wrong("after step 20 is saved beside step 10, newest does not find it")
    return copies


def files(folder: Path) -> str:
    """What lies in a folder: names, and sizes in bytes."""
    paths = [Path(base, name) for base, _, names in os.walk(folder) for name in sorted(names)]
    sizes = [f"{path.relative_to(folder)} ({path.stat().st_size} bytes)" for path in paths]
    return ", ".join(sizes) or "no file"


def check_killed(answer, folder: Path) -> None:
    left = files(folder)
    if (found := try_newest(answer, folder, left)) not in ((10, OLD), (20, NEW)):
        if found is None:
            raise Wrong(f"a kill leaves {left}, and newest finds no checkpoint: the "
                        "old one must stay until the new one is complete")  # fmt: skip
        raise Wrong(f"a kill leaves {left}, and newest takes a part of step {found[0]} for the "
                    "whole: write under another name, then rename")  # fmt: skip
    step = 30 if found == (20, NEW) else 20  # the run resumes, and saves what comes next
    try:
        answer.save(folder, step, NEW)
    except OSError as error:
        raise Wrong(f"a kill leaves {left}, and the next save fails: {error.strerror}") from None
    if answer.newest(folder) != (step, NEW):
        raise Wrong(f"a kill leaves {left}, and what is saved next is not found")


def try_newest(answer, folder: Path, left: str):
    try:
        return answer.newest(folder)
    except Exception as error:
        what = f"{type(error).__name__}: {error}"
        raise Wrong(f"a kill leaves {left}, and newest raises {what}") from None


def check_damage(answer, folder: Path) -> None:
    """One byte of the new data is changed."""
    answer.save(folder, 10, OLD)
    answer.save(folder, 20, NEW)
    for path in folder.rglob("*"):
        if path.is_file() and NEW in path.read_bytes():
            path.write_bytes(path.read_bytes().replace(NEW, NEW[:-1] + b"!"))
    found = answer.newest(folder)
    if found is None:
        raise Wrong("a byte of step 20 is damaged, and newest finds nothing: step 10 is whole")
    if found != (10, OLD):
        raise Wrong("a byte of step 20 is damaged, and newest takes it: store a checksum too")


def check_flush(answer, folder: Path) -> None:
    calls, flushed = [], [0]

    def noted(name, function):
        def call(*args, **kwargs):
            calls.append(name)
            return function(*args, **kwargs)

        return call

    def fsync(file, flush=os.fsync):
        flushed.append(os.stat(file).st_size)
        flush(file)

    renames = {name: noted("rename", getattr(os, name)) for name in ("replace", "rename")}
    with patch.multiple(os, fsync=noted("fsync", fsync), **renames):
        answer.save(folder, 10, OLD)
    if "rename" not in calls:
        raise Wrong("nothing is renamed: write under another name, then os.replace")
    if "fsync" not in calls[: calls.index("rename")]:
        raise Wrong("the rename may reach the disk before the bytes: os.fsync the file first")
    if max(flushed) < len(OLD):
        raise Wrong("os.fsync came while the bytes were in Python's buffer: file.flush() first")
