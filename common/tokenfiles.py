"""Token ids on disk: the files of a folder, of any of four formats, read as one sequence.

val_000000.npy, train_000001.npy, …   NumPy, uint16: ours, and build-nanogpt's
train.bin, val.bin                    nanoGPT's: uint16 and nothing else
*_train_*.bin, *_val_*.bin            llm.c's: 256 int32 first, magic 20240520, version, count
"""

import json
import re
import time
from bisect import bisect_right
from concurrent.futures import ThreadPoolExecutor
from itertools import accumulate
from pathlib import Path

import numpy as np
import torch

from common.cli import UserError
from common.data import Batches, Tokens, held_out_size, load_tokens
from common.tokenizer import VOCAB_SIZE

LLMC_MAGIC, LLMC_VERSION, LLMC_HEADER = 20240520, 1, 1024  # the last in bytes


class TokenFiles:
    """The ids of some files, one after the other, as one sequence (N,) that can be sliced: mapped,
    not read. A slice is checked for ids beyond the vocabulary as it is read."""

    def __init__(self, parts: list[tuple[Path, np.ndarray]]):
        self.parts = parts
        self.ends = list(accumulate(len(ids) for _, ids in parts))

    def __len__(self) -> int:
        return self.ends[-1] if self.ends else 0

    def __getitem__(self, places: slice) -> np.ndarray:
        """The ids at places, a copy where they come from more than one file."""
        found = self.between(*places.indices(len(self))[:2]).parts
        for path, ids in found:
            if ids.max() >= VOCAB_SIZE or ids.min() < 0:
                raise UserError(f"{path} has ids from {ids.min()} to {ids.max()}: GPT-2's go from "
                                f"0 to {VOCAB_SIZE - 1}")  # fmt: skip
        if len(found) == 1:
            return found[0][1]
        return np.concatenate([np.empty(0, np.uint16), *(ids for _, ids in found)])

    def between(self, start: int, stop: int) -> "TokenFiles":
        """The sequence from start to stop, nothing read."""
        parts = []
        while start < stop:
            k = bisect_right(self.ends, start)
            path, ids = self.parts[k]
            first = self.ends[k] - len(ids)
            parts.append((path, ids[start - first : stop - first]))
            start += len(parts[-1][1])
        return TokenFiles(parts)


class Ahead:
    """Batches, each read by a thread while the step before it runs; on a GPU's machine into memory
    that the GPU copies from by itself. `waited` is the seconds that steps had to wait all the same.
    """

    def __init__(self, batches: Batches, pin: bool):
        self.batches, self.pin, self.waited = batches, pin, 0.0
        self.pool, self.coming, self.place = ThreadPoolExecutor(1), None, batches.state()

    def _read(self) -> tuple:
        x, y = next(self.batches)
        return (x.pin_memory(), y.pin_memory()) if self.pin else (x, y), self.batches.state()

    def __next__(self) -> tuple[torch.Tensor, torch.Tensor]:
        started = time.perf_counter()
        batch, self.place = (self.coming or self.pool.submit(self._read)).result()
        self.waited += time.perf_counter() - started
        self.coming = self.pool.submit(self._read)
        return batch

    def state(self) -> dict[str, int]:
        """Where the stream stands after the batches that were taken, not those read ahead."""
        return self.place

    def restore(self, state: dict[str, int]) -> None:
        """Go on from a state(), before any batch is taken."""
        self.batches.restore(state)
        self.place = state


def map_ids(path: Path) -> np.ndarray:
    """The ids (N,) of a token file of any of the formats, mapped. Raises UserError for a file that
    is truncated or holds something else; looks at its first ids, not at all."""
    try:
        if path.suffix == ".npy":
            ids = np.load(path, mmap_mode="r")
        else:
            ids = _map_bin(path)
    except (OSError, ValueError, EOFError) as error:
        raise UserError(f"{path} is no file of token ids: {error}") from None
    if not isinstance(ids, np.ndarray) or ids.ndim != 1 or ids.dtype.kind not in "iu":
        raise UserError(f"{path} holds no integers of shape (N,): give GPT-2's ids")
    sample = ids[:4096]
    if not len(ids) or sample.min() < 0 or sample.max() >= VOCAB_SIZE:
        what = f"ids from {sample.min()} to {sample.max()}" if len(ids) else "nothing"
        raise UserError(f"{path} begins with {what}: GPT-2's ids go from 0 to {VOCAB_SIZE - 1}")
    return ids


def _map_bin(path: Path) -> np.ndarray:
    with path.open("rb") as file:
        head = file.read(4096)
    size = path.stat().st_size
    magic, version, count = np.frombuffer(head[:12].ljust(12, b"\0"), "<i4")
    if magic == LLMC_MAGIC:
        if version != LLMC_VERSION or size != LLMC_HEADER + 2 * count:
            raise ValueError(f"{size:,} bytes where version {version} and {count:,} ids would be "
                             f"{LLMC_HEADER + 2 * count:,}")  # fmt: skip
        return np.memmap(path, "<u2", "r", offset=LLMC_HEADER)
    if size % 2:
        raise ValueError(f"{size:,} bytes are no whole number of uint16: it is cut off")
    ids = np.frombuffer(head[: len(head) // 4 * 4], "<u2")
    if len(ids) > 2 and ids[::2].any() and not ids[1::2].any():
        raise ValueError("it holds ids of 32 bits: give uint16")
    if all(32 <= byte < 127 or byte in b"\t\r\n" for byte in head):  # ids below 256 have zeros
        raise ValueError("it is empty" if not size else "it is a text")
    return np.memmap(path, "<u2", "r")


def _check_folder(path: Path, found: list[Path]) -> None:
    """Raises UserError for a folder that is not GPT-2's, not complete, or not of one format."""
    if (path / "meta.pkl").exists():
        raise UserError(f"{path} has a meta.pkl: its ids are not GPT-2's")
    headers = {p.open("rb").read(4) == LLMC_MAGIC.to_bytes(4, "little") for p in found}
    if found[0].suffix == ".bin" and len(headers) > 1:
        raise UserError(f"{path} has .bin files with llm.c's header and without: give one format")
    if (path / "meta.json").exists():
        try:
            shards = json.loads((path / "meta.json").read_text())["shards"]
            missing = {shard["name"] for shard in shards} - {p.name for p in found}
        except (ValueError, KeyError, TypeError):
            return  # somebody else's
        if missing:
            raise UserError(f"{path} lacks {min(missing)}, which its meta.json names")
    elif (path / "progress.json").exists():
        raise UserError(f"{path} is not complete: python -m common.shards … --out {path} goes on")


def open_tokens(data: str) -> Tokens:
    """What stage 6 trains on: a folder of shards, a .bin file, or all that load_tokens takes.

    Files with "val" in their names are held out; without them, the end is. Prints what it is.
    Raises UserError for what is no such thing.
    """
    path = Path(data).expanduser()
    found = (
        sorted(p for p in path.glob("*") if p.suffix in (".npy", ".bin")) if path.is_dir() else ()
    )
    if path.suffix == ".bin" and path.is_file():
        found = [path]
    if not found:
        return load_tokens(data)
    if len({p.suffix for p in found}) > 1:
        raise UserError(f"{data} has .npy and .bin files: give a folder with one format")
    _check_folder(path, found)
    held_out = [p for p in found if re.search(r"(^|[_.-])val([_.-]|$)", p.stem)]
    train = [p for p in found if p not in held_out]
    if not train:
        raise UserError(f"{data} has held-out shards alone: give one with files to train on")
    ids = TokenFiles([(p, map_ids(p)) for p in train])
    if held_out:
        tokens = Tokens(ids, TokenFiles([(p, map_ids(p)) for p in held_out]))
    else:
        n = held_out_size(len(ids), data)
        tokens = Tokens(ids.between(0, len(ids) - n), ids.between(len(ids) - n, len(ids)))
    if len(tokens.held_out) < 2:
        raise UserError(f"{data} holds out {len(tokens.held_out)} ids: give it 2 or more")
    print(f"text: {path.name}, {len(tokens.train):,} tokens, {len(tokens.held_out):,} held out")
    print(f"  source: {len(found)} {path.suffix or found[0].suffix} files, mapped")
    return tokens
