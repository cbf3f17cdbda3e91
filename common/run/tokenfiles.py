"""Token ids on disk: the files of a folder, in any of four formats, read as one sequence.

val_000000.npy, train_000001.npy, …   NumPy, uint16: ours, and build-nanogpt's
train.bin, val.bin                    nanoGPT's: uint16 and nothing else
*_train_*.bin, *_val_*.bin            llm.c's: 256 int32 first, magic 20240520, version, count
*.ds                                  datatrove's: uint16 or uint32; *.ds.index: document ends
"""

import re
from bisect import bisect_right
from itertools import accumulate
from pathlib import Path

import numpy as np
from numpy.lib.format import open_memmap

from common.data import Tokens, load_tokens, val_size
from common.kit.cli import UserError
from common.kit.disk import read_json
from common.tokenizer import VOCAB_SIZE

LLMC_MAGIC, LLMC_VERSION, LLMC_HEADER = 20240520, 1, 1024  # the last in bytes


class TokenFiles:
    """The ids of several files, one after the other, as one sequence (N,) that can be sliced. The
    files are memory-mapped. Each slice is checked for ids that are not GPT-2's when it is read."""

    def __init__(self, parts: list[tuple[Path, np.ndarray]]):
        self.parts = parts
        self.ends = list(accumulate(len(ids) for _, ids in parts))

    def __len__(self) -> int:
        return self.ends[-1] if self.ends else 0

    def __getitem__(self, places: slice) -> np.ndarray:
        """The ids (n,); a copy if they come from several files. Raises UserError for ids that are
        not GPT-2's."""
        found = self.between(*places.indices(len(self))[:2]).parts
        for path, ids in found:
            if ids.max() >= VOCAB_SIZE or ids.min() < 0:
                sizes = f"ids from {ids.min()} to {ids.max()}"
                raise UserError(f"{path} has {sizes}: GPT-2's go from 0 to {VOCAB_SIZE - 1}")
        if len(found) == 1:
            return found[0][1]
        return np.concatenate([np.empty(0, np.uint16), *(ids for _, ids in found)])

    def between(self, start: int, stop: int) -> "TokenFiles":
        """The sequence from start to stop. Nothing is read."""
        parts = []
        while start < stop:
            k = bisect_right(self.ends, start)
            path, ids = self.parts[k]
            first = self.ends[k] - len(ids)
            parts.append((path, ids[start - first : stop - first]))
            start += len(parts[-1][1])
        return TokenFiles(parts)


def map_ids(path: Path) -> np.ndarray:
    """The ids (N,) of a file with one of the ENDINGS: integers, memory-mapped. Raises UserError for
    a file that is truncated or holds something else."""
    try:
        ids = ENDINGS[path.suffix](path)
    except Exception as error:  # NumPy evaluates the header: there is little it does not raise
        raise UserError(f"{path} is not a file of token ids: {error!r:.150}") from None
    if ids.ndim != 1 or ids.dtype.kind not in "iu":
        found = f"{ids.dtype} of shape {ids.shape}"
        raise UserError(f"{path} holds {found}: give integers of shape (N,)")
    return ids


def _map_bin(path: Path) -> np.ndarray:
    head, size = np.fromfile(path, "<i4", 3).tolist(), path.stat().st_size
    if head[:1] != [LLMC_MAGIC]:
        return np.memmap(path, "<u2", "r")
    _, version, count = (*head, 0, 0)[:3]  # the file may be cut off
    if version != LLMC_VERSION or size != LLMC_HEADER + 2 * count:
        raise ValueError(f"{size:,} bytes do not fit version {version} and {count:,} ids")
    return np.memmap(path, "<u2", "r", offset=LLMC_HEADER)


def _map_ds(path: Path) -> np.ndarray:
    """The index (uint64) ends with the number of ids, which gives the size of one."""
    count = np.memmap(f"{path}.index", "<u8", "r")[-1].item()
    size = path.stat().st_size
    if size not in (2 * count, 4 * count):
        raise ValueError(f"{size:,} bytes, and its index ends at {count:,} ids of 2 or 4")
    return np.memmap(path, f"<u{size // count}", "r")


# How the ids of a file are mapped, by the ending of its name.
ENDINGS = {".npy": lambda path: open_memmap(path, mode="r"), ".bin": _map_bin, ".ds": _map_ds}


def open_tokens(data: str, vocab_size: int = VOCAB_SIZE) -> Tokens:
    """The tokens of a file with one of the ENDINGS, of a folder of such files, or of whatever
    load_tokens takes.

    Files with "val" in their names are for validation; without such files, the end of the ids is.
    Prints what was found. Raises UserError for files that don't hold GPT-2's ids, or too few of
    them, and for a vocab_size below GPT-2's.
    """
    path = Path(data).expanduser()
    found = [path] if path.is_file() else sorted(path.glob("*"))  # none if there is no folder
    if (path / "progress.json").exists() and not (path / "meta.json").exists():
        raise UserError(f"{data} is not complete: the command that made it resumes")
    files = {p: map_ids(p) for p in found if p.suffix in ENDINGS}
    if not files:
        return load_tokens(data, vocab_size)
    if vocab_size < VOCAB_SIZE:
        whole = f"ids of all {VOCAB_SIZE} tokens, more than {vocab_size}"
        hint = f"give --vocab-size {VOCAB_SIZE}, or a large model's --recipe"
        raise UserError(f"{data} has {whole}: {hint}")
    if len(endings := {p.suffix for p in files}) > 1:
        raise UserError(f"{data} has {' and '.join(sorted(endings))} files: give one format")
    meta = read_json(path / "meta.json") if (path / "meta.json").exists() else {}
    if "made_from" in meta:  # it is ours
        if missing := {shard["name"] for shard in meta["shards"]} - {p.name for p in files}:
            raise UserError(f"{data} lacks {min(missing)}, which its meta.json names")
    if (path / "meta.pkl").exists():
        raise UserError(f"{data} has a meta.pkl: its ids are not GPT-2's")
    for_val = [p for p in files if path.is_dir() and re.search(r"(^|[_.-])val([_.-]|$)", p.stem)]
    val = TokenFiles([(p, files[p]) for p in for_val])
    train = TokenFiles([(p, ids) for p, ids in files.items() if p not in for_val])
    if not len(train):
        raise UserError(f"{data} has no ids to train on: give a folder with training files too")
    if not len(val):
        end = len(train) - val_size(len(train), data)
        train, val = train.between(0, end), train.between(end, len(train))
    if len(val) < 2:
        raise UserError(f"{data} has {len(val)} ids for validation: give 2 or more")
    print(f"text: {path.name}, {len(train):,} tokens to train on, {len(val):,} for validation")
    print(f"  source: {len(files)} {next(iter(files)).suffix} files, mapped")
    return Tokens(train, val)
