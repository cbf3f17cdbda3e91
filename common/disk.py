"""Files and folders that are whole or absent, whatever ends the process that writes them.

Each is written under another name, forced to the disk, and renamed, which is atomic. And locks,
for folders that two processes might write into.
"""

import fcntl
import hashlib
import json
import os
import shutil
from pathlib import Path
from typing import TextIO

from common.cli import UserError


def check_room(folder: Path, need: float, what: str) -> None:
    """Raises UserError if the disk has no room for `need` bytes in folder, which need not be there
    yet. What is in it counts as room: it will be written over."""
    there = next(path for path in (folder, *folder.absolute().parents) if path.is_dir())
    ours = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    free = shutil.disk_usage(there).free + ours
    if need > free:
        raise UserError(f"{what} take about {need / 1e9:.1f} GB, and {folder} has room for "
                        f"{free / 1e9:.1f}: make room, or write elsewhere")  # fmt: skip


def lock(path: Path, wait: bool = False) -> TextIO | None:
    """An exclusive lock on a file, made for it, until that is closed or the process ends. None, if
    not to wait, while another process has it."""
    file = path.open("w")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except BlockingIOError:
        file.close()
        return None
    return file


def write_json(path: Path, value) -> None:
    write_text(path, json.dumps(value, indent=1) + "\n")


def write_text(path: Path, text: str) -> None:
    partial = path.with_name(f".{path.name}.partial")
    partial.write_text(text)
    sync(partial)
    os.replace(partial, path)


def replace_folder(new: Path, final: Path) -> None:
    """Rename new to final, in place of a folder that is there."""
    old = final.with_name(f".{final.name}.old.partial")
    shutil.rmtree(old, ignore_errors=True)  # a kill may have left one
    if final.exists():
        os.replace(final, old)
    os.replace(new, final)
    shutil.rmtree(old, ignore_errors=True)


def sync(path: Path) -> None:
    """Wait until a file, or a folder's list of names, is on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    os.fsync(descriptor)
    os.close(descriptor)


def sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
