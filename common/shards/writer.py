"""Shards on their way to the disk: an interrupted run can be resumed, and ends with the same bytes
as one that was not interrupted."""

import json
import os
import time
from dataclasses import asdict
from pathlib import Path

import numpy as np
from tqdm import tqdm

from common.kit.cli import UserError
from common.kit.disk import lock, sha256, sync, write_json
from common.run.tokenfiles import map_ids
from common.shards.documents import Batch
from common.shards.progress import DAMAGED, NAME, OURS, SPLITS, Progress
from common.tokenizer import VOCAB_SIZE

NPY_HEADER = 128  # bytes: what NumPy writes for an array of one dimension
SECONDS_BETWEEN_SAVES = 10  # of the progress: the work that a kill loses


class Shards:
    """The shards of both splits while they are written into a folder.

    A shard is called .NAME.partial until it is complete and on the disk. The progress is saved
    every few seconds, after the shards; resuming cuts off what was written later.
    """

    def __init__(self, folder: Path, made_from: dict):
        """Resumes what was begun in the folder. Raises UserError if the folder holds other files,
        or shards made from something else, and if another process writes into it."""
        self.folder, self.progress, self.files = folder, Progress(made_from), {}
        self.meta, self.note, self.saved = folder / "meta.json", folder / "progress.json", 0.0
        self.complete = self.meta.exists()
        found = self.meta if self.complete else self.note
        if not found.exists() and any(path.name != ".lock" for path in folder.iterdir()):
            raise UserError(f"{folder} is not empty: give an empty or a new folder as --out")
        self.lock = None if self.complete else lock(folder / ".lock")
        if not self.complete and self.lock is None:
            raise UserError(f"another process writes into {folder}: give another --out")
        try:
            if found.exists():
                self._resume(json.loads(found.read_text()))
        except DAMAGED:
            raise UserError(f"{found} is damaged, or not ours: give another --out") from None

    def _resume(self, saved: dict) -> None:
        """Open the shards that were begun, and cut off what was written after the progress."""
        for name, value in self.progress.made_from.items():
            found = saved["made_from"][name]
            if found != value:
                other = f"was begun with another {name}, {found!r:.60}"
                raise UserError(f"{self.folder} {other}: give another --out")
        if self.complete:
            self.note.unlink(missing_ok=True)  # a kill may have left it
            return
        now = self.progress = Progress(**saved)
        now.check()
        for split in SPLITS:
            index, count = now.begun[split]
            path, partial = self._paths(split)
            if count:
                if not partial.exists():  # it was completed after the progress was saved
                    os.replace(path, partial)
                file = self.files[split] = partial.open("r+b")
                if file.seek(0, os.SEEK_END) < NPY_HEADER + 2 * count:
                    raise ValueError
                file.truncate(NPY_HEADER + 2 * count)
                file.seek(NPY_HEADER + 2 * count)

    @property
    def tokens(self) -> int:
        begun = sum(count for _, count in self.progress.begun.values())
        return begun + sum(shard["tokens"] for shard in self.progress.shards)

    def append(self, batch: Batch, train: np.ndarray, val: np.ndarray) -> None:
        """Write a batch's ids, uint16 (N,), and save the progress if it is time."""
        now, room = self.progress, 0
        index, count = now.begun["val"]
        if now.made_from["val_fraction"] is None and index == 0:  # the first shard is for that
            room = now.made_from["shard_tokens"] - count
        self._write("val", val)
        self._write("val", train[:room])
        self._write("train", train[room:])
        now.texts += len(batch.texts)
        now.documents += len(batch.texts) * batch.begins
        now.empty += batch.empty
        now.state = batch.state
        if time.monotonic() - self.saved > SECONDS_BETWEEN_SAVES:
            self.save()

    def save(self) -> None:
        for file in self.files.values():
            file.flush()
            os.fsync(file.fileno())
        write_json(self.note, asdict(self.progress))
        self.saved = time.monotonic()

    def finish(self) -> None:
        """Complete the last shards and write meta.json. Raises UserError, and leaves nothing, if
        one of the two splits is empty."""
        now = self.progress
        if now.begun["val"] == [0, 0] or now.begun["train"] == [1, 0]:
            for path in self.folder.iterdir():
                if OURS.fullmatch(path.name):
                    path.unlink()
            what = f"{now.documents:,} documents, {self.tokens:,} tokens"
            raise UserError(f"{what}, leave one of train and val empty: {self._hint()}")
        self.save()
        for split in SPLITS:
            if split in self.files:
                self._complete(split)
        tokens = {"train": 0, "val": 0}
        for shard in now.shards:
            tokens[shard["name"].partition("_")[0]] += shard["tokens"]
        write_json(self.meta, {
            "made_from": now.made_from, "tokenizer": "gpt2", "vocab_size": VOCAB_SIZE,
            "documents": now.documents, "empty": now.empty, "tokens": tokens, "shards": now.shards,
        })  # fmt: skip
        self.note.unlink()
        (self.folder / ".lock").unlink()

    def _hint(self) -> str:
        now = self.progress
        if now.made_from["val_fraction"] is None:
            return f"give a --shard-tokens below {self.tokens}, or a --val-fraction"
        parts = now.texts if now.documents == 1 else now.documents  # a single text has pieces
        if parts < 2:
            return "give more text"
        smallest = -(-(10**6) // parts) / 10**6  # rounded up
        return f"give a --val-fraction from {smallest:g} to {1 - smallest:g}"

    def _paths(self, split: str) -> tuple[Path, Path]:
        """Of the shard that is being written: its name when complete, and until then."""
        name = f"{split}_{self.progress.begun[split][0]:06d}.npy"
        return self.folder / name, self.folder / f".{name}.partial"

    def _write(self, split: str, ids: np.ndarray) -> None:
        """Write ids (N,) uint16, into as many shards as it takes."""
        begun, limit = self.progress.begun, self.progress.made_from["shard_tokens"]
        while len(ids):
            if split not in self.files:
                self.files[split] = self._paths(split)[1].open("w+b")
                self.files[split].write(bytes(NPY_HEADER))
            here = ids[: limit - begun[split][1]]
            self.files[split].write(here.astype("<u2").tobytes())
            begun[split][1] += len(here)
            ids = ids[len(here) :]
            if begun[split][1] == limit:
                self._complete(split)

    def _complete(self, split: str) -> None:
        """Write the header of a shard, full or the last, and rename it."""
        (index, count), (path, partial) = self.progress.begun[split], self._paths(split)
        with self.files.pop(split) as file:
            file.seek(0)
            header = {"descr": "<u2", "fortran_order": False, "shape": (count,)}
            np.lib.format.write_array_header_1_0(file, header)
            assert file.tell() == NPY_HEADER
        sync(partial)
        shard = {"name": path.name, "tokens": count, "sha256": sha256(partial)}
        self.progress.shards.append(shard)
        os.replace(partial, path)
        self.progress.begun[split] = [index + 1, 0]


def verify(folder: Path) -> None:
    """Compare every shard in a folder with its meta.json. Raises UserError at a difference."""
    try:
        meta = json.loads((folder / "meta.json").read_text())
        shards = [
            (folder / NAME.fullmatch(shard["name"])[0], shard["tokens"], shard["sha256"])
            for shard in meta["shards"]
        ]
    except DAMAGED:
        raise UserError(f"{folder} has no meta.json, or not one of ours: give another") from None
    for path, tokens, digest in tqdm(shards, unit=" shards", leave=False, disable=None):
        if len(map_ids(path)) != tokens or sha256(path) != digest:
            raise UserError(f"{path} is not what was written: make it again")
    print(f"{folder}: {len(shards)} shards, {sum(s[1] for s in shards):,} tokens, as written")
