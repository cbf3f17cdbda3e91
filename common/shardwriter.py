"""Shards on their way to the disk, so that a run that was interrupted can go on, and ends with the
same bytes as one that was not."""

import json
import os
import time
from pathlib import Path

import numpy as np
from tqdm import tqdm

from common.cli import UserError
from common.disk import lock, sha256, write_json
from common.documents import Batch
from common.tokenfiles import map_ids
from common.tokenizer import VOCAB_SIZE

NPY_HEADER = 128  # bytes: what NumPy writes for an array of one dimension
SECONDS_BETWEEN_NOTES = 10  # of where it stands: what a kill loses


class ShardWriter:
    """Shards of one split, filled one after the other. A shard has a hidden name until it is full,
    on the disk and summed; the list `finished` then gets its name, tokens and SHA-256."""

    def __init__(self, folder: Path, split: str, index: int, count: int, most: int, finished: list):
        """Go on with `count` ids in shard `index`, of `most` at most."""
        self.folder, self.split, self.index, self.most = folder, split, index, most
        self.count, self.finished, self.file = count, finished, None
        if count:
            if not self.partial.exists():  # it was finished, and that not yet noted
                os.replace(folder / self.name, self.partial)
            self.file = self.partial.open("r+b")
            self.file.truncate(NPY_HEADER + 2 * count)
            self.file.seek(0, os.SEEK_END)

    @property
    def name(self) -> str:
        return f"{self.split}_{self.index:06d}.npy"

    @property
    def partial(self) -> Path:
        return self.folder / f".{self.name}.partial"

    def append(self, ids: np.ndarray) -> None:
        """Write ids (N,) uint16, into as many shards as it takes."""
        while len(ids):
            if self.file is None:
                self.file = self.partial.open("w+b")
                self.file.write(bytes(NPY_HEADER))
            here = ids[: self.most - self.count]
            self.file.write(here.astype("<u2").tobytes())
            self.count += len(here)
            ids = ids[len(here) :]
            if self.count == self.most:
                self.finish()

    def sync(self) -> None:
        """Wait until what was appended is on the disk."""
        if self.file:
            self.file.flush()
            os.fsync(self.file.fileno())

    def finish(self) -> None:
        """Close a shard, full or the last, and give it its name."""
        if self.file is None:
            return
        self.file.seek(0)
        what = {"descr": "<u2", "fortran_order": False, "shape": (self.count,)}
        np.lib.format.write_array_header_1_0(self.file, what)
        assert self.file.tell() == NPY_HEADER
        self.sync()
        self.file.close()
        self.finished.append(
            {"name": self.name, "tokens": self.count, "sha256": sha256(self.partial)}
        )
        os.replace(self.partial, self.folder / self.name)
        self.index, self.count, self.file = self.index + 1, 0, None


class Shards:
    """What is written into a folder, and noted there so that an interrupted run can go on."""

    def __init__(self, folder: Path, made_from: dict):
        """Raises UserError if the folder holds something else."""
        self.folder, self.made_from, self.noted = folder, made_from, time.monotonic()
        self.progress, self.meta = folder / "progress.json", folder / "meta.json"
        found = next((path for path in (self.meta, self.progress) if path.exists()), None)
        if not found and any(path.name != ".lock" for path in folder.iterdir()):
            raise UserError(f"{folder} is in use: give an empty or a new folder as --out")
        try:
            note = json.loads(found.read_text()) if found else {"made_from": made_from}
            others = [n for n, value in made_from.items() if note["made_from"][n] != value]
        except (ValueError, KeyError, TypeError):
            raise UserError(f"{found} is damaged, or not ours: give another --out") from None
        if others:
            value = f"{note['made_from'][others[0]]!r:.60}"
            raise UserError(f"{folder} was begun with another {others[0]}, {value}: give another "
                            "--out")  # fmt: skip
        self.complete = found == self.meta
        if self.complete:
            self.progress.unlink(missing_ok=True)  # a kill may have left it
        else:
            self.lock = lock(folder / ".lock")
            if self.lock is None:
                raise UserError(f"another process writes into {folder}: give another --out")
        self.state, self.texts = note.get("state"), note.get("texts", 0)
        self.documents, self.empty = note.get("documents", 0), note.get("empty", 0)
        self.finished = note.get("shards", [])
        most = made_from["shard_tokens"]
        begun = {} if self.complete else note.get("begun", {})
        self.val = ShardWriter(folder, "val", *begun.get("val", (0, 0)), most, self.finished)
        self.train = ShardWriter(folder, "train", *begun.get("train", (1, 0)), most, self.finished)

    @property
    def tokens(self) -> int:
        return sum(s["tokens"] for s in self.finished) + self.val.count + self.train.count

    def append(self, batch: Batch, train: np.ndarray, held_out: np.ndarray) -> None:
        """Write a batch's ids, and every few seconds where that has come to."""
        room = 0
        if self.made_from["val_fraction"] is None and self.val.index == 0:
            room = self.val.most - self.val.count
        self.val.append(held_out)
        self.val.append(train[:room])
        self.train.append(train[room:])
        self.texts += len(batch.texts)
        self.documents += sum(batch.begins)
        self.empty += batch.empty
        self.state = batch.state
        if time.monotonic() - self.noted > SECONDS_BETWEEN_NOTES:
            self.note()

    def note(self) -> None:
        """Keep where it stands: shards on the disk first, then a file that says so."""
        writers = {"val": self.val, "train": self.train}
        for writer in writers.values():
            writer.sync()
        begun = {split: (writer.index, writer.count) for split, writer in writers.items()}
        write_json(self.progress, {
            "made_from": self.made_from, "state": self.state, "texts": self.texts,
            "documents": self.documents, "empty": self.empty, "begun": begun,
            "shards": self.finished,
        })  # fmt: skip
        self.noted = time.monotonic()

    def finish(self) -> None:
        """Close the last shards and describe them all. Raises UserError, and leaves nothing, if one
        of the two splits has got nothing."""
        if not (self.train.index > 1 or self.train.count) or not (self.val.index or self.val.count):
            tokens = self.tokens
            ours = [self.progress, self.folder / ".lock", self.val.partial, self.train.partial]
            for path in (*ours, *(self.folder / shard["name"] for shard in self.finished)):
                path.unlink(missing_ok=True)
            raise UserError(f"{self.documents:,} documents of {tokens:,} tokens leave nothing to "
                            "train on, or nothing to hold out: give a --val-fraction that splits "
                            "them, or a smaller --shard-tokens")  # fmt: skip
        self.note()
        self.val.finish()
        self.train.finish()
        sums = {split: sum(s["tokens"] for s in self.finished if s["name"].startswith(split))
                for split in ("train", "val")}  # fmt: skip
        write_json(self.meta, {
            "made_from": self.made_from, "tokenizer": "gpt2", "vocab_size": VOCAB_SIZE,
            "documents": self.documents, "empty": self.empty, "tokens": sums,
            "shards": self.finished,
        })  # fmt: skip
        self.progress.unlink()
        (self.folder / ".lock").unlink()


def verify(folder: Path) -> None:
    """Hold every shard in a folder against its meta.json. Raises UserError for the first that is
    not as it says."""
    try:
        meta = json.loads((folder / "meta.json").read_text())
        shards = [(folder / s["name"], s["tokens"], s["sha256"]) for s in meta["shards"]]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{folder} has no meta.json that can be read: {error}") from None
    for path, tokens, digest in tqdm(shards, unit=" shards", leave=False, disable=None):
        ids = map_ids(path)
        if len(ids) != tokens or sha256(path) != digest:
            raise UserError(f"{path} is not what was written: make it anew")
        if ids.max() >= VOCAB_SIZE:
            raise UserError(f"{path} has id {ids.max()}: GPT-2's end at {VOCAB_SIZE - 1}")
    total = sum(tokens for _, tokens, _ in shards)
    print(f"{folder}: {len(shards)} shards, {total:,} tokens, each as it was written")
