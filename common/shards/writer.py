"""Write shards to the disk. An interrupted run can be resumed, and ends with the same bytes as one
that was not interrupted."""

import os
import time
from collections import Counter
from dataclasses import asdict
from pathlib import Path

import numpy as np
from numpy.lib.format import write_array_header_1_0
from tqdm import tqdm

from common.kit.cli import UserError
from common.kit.disk import is_empty, lock, read_json, sha256, sync, write_json
from common.run.tokenfiles import map_ids
from common.shards.documents import Batch, Position
from common.tokenizer import VOCAB_SIZE

HEADER = {"descr": "<u2", "fortran_order": False}  # NumPy's, which leaves room for any length
SECONDS_BETWEEN_SAVES = 10  # of the progress; a kill loses the work since the last save


class Shards:
    """The shards of both splits while they are written into a folder.

    progress.json holds the position in the source and each split's number of ids, which tells the
    shard that the split is in. It is saved every few seconds, after the shards; resuming cuts off
    what was written later. A shard's header declares a full shard, so NumPy rejects a partial one.
    """

    def __init__(self, folder: Path, made_from: dict):
        """Resumes what was begun in the folder. Raises UserError if the folder holds other files,
        or shards made from something else, or if another process writes into it."""
        self.folder, self.made_from, self.limit = folder, made_from, made_from["shard_tokens"]
        self.position, self.tokens = Position(), Counter(train=0, val=0)
        self.files, self.saved = {}, 0.0  # the open shard of each split; the time of the last save
        self.meta, self.note = folder / "meta.json", folder / "progress.json"
        # In this order: another process may be beginning or finishing the same shards.
        if not is_empty(folder) and not (self.note.exists() or self.meta.exists()):
            raise UserError(f"{folder} is not empty: give an empty or a new folder as --out")
        self.lock = None if self.meta.exists() else lock(folder)
        self.complete = self.meta.exists()
        if not (self.complete or self.lock):
            raise UserError(f"another process writes into {folder}: give another --out")
        found = self.meta if self.complete else self.note
        if found.exists():
            self._resume(read_json(found))

    def _resume(self, saved: dict) -> None:
        if saved.get("made_from") and not any(saved["tokens"].values()):
            return  # it ended before a token was written
        for name, value in self.made_from.items():
            if (found := saved.get("made_from", {}).get(name)) != value:
                found = f"begun with another {name}, {found!r:.60}"
                raise UserError(f"{self.folder} was {found}: give another --out")
        if self.complete:
            self.note.unlink(missing_ok=True)  # a kill may have left it
            return
        self.position, self.tokens = Position(**saved["position"]), Counter(saved["tokens"])
        for split, n in self.tokens.items():
            for k in range(-(-n // self.limit)):
                if not self._path(split, k).exists():
                    raise UserError(f"{self._path(split, k)} is missing: give another --out")
            if n % self.limit:
                self._open(split)

    def _path(self, split: str, k: int) -> Path:
        """The path of a split's k-th shard. Training shards are numbered from 1."""
        return self.folder / f"{split}_{k + (split == 'train'):06d}.npy"

    def _open(self, split: str) -> None:
        """Open the shard that a split is in, and cut off what was written after the last save."""
        k, count = divmod(self.tokens[split], self.limit)
        file = self.files[split] = self._path(split, k).open("r+b" if count else "w+b")
        write_array_header_1_0(file, HEADER | {"shape": (self.limit,)})
        end = file.tell() + 2 * count
        if file.seek(0, os.SEEK_END) < end:
            raise UserError(f"{file.name} is shorter than it was: give another --out")
        file.truncate(end)
        file.seek(end)

    def append(self, batch: Batch, ids: dict[str, np.ndarray]) -> None:
        """Write a batch's ids, uint16 (N,) for each split, and save the progress if it is time."""
        # Without --val-fraction the first shard is for validation.
        room = 0 if self.made_from["val_fraction"] else self.limit - self.tokens["val"]
        self._write("val", ids["val"])
        self._write("val", ids["train"][:room])
        self._write("train", ids["train"][room:])
        self.position = batch.end
        if time.monotonic() - self.saved > SECONDS_BETWEEN_SAVES:
            self.save()

    def _write(self, split: str, ids: np.ndarray) -> None:
        """Write ids (N,) uint16 into as many shards as needed."""
        while len(ids):
            if split not in self.files:
                self._open(split)
            here = ids[: self.limit - self.tokens[split] % self.limit]
            self.files[split].write(here.astype("<u2").tobytes())
            self.tokens[split] += len(here)
            ids = ids[len(here) :]
            if self.tokens[split] % self.limit == 0:
                file = self.files.pop(split)
                file.close()
                sync(file.name)

    def save(self) -> None:
        for file in self.files.values():
            file.flush()
            os.fsync(file.fileno())
        now = {"position": asdict(self.position), "tokens": self.tokens}
        write_json(self.note, {"made_from": self.made_from, **now})
        self.saved = time.monotonic()

    def finish(self) -> None:
        """Complete the last shards and write meta.json. If one of the two splits is empty, raises
        UserError and leaves nothing."""
        documents, tokens = self.position.documents, self.tokens
        if 0 in tokens.values():
            ours = [path for split in tokens for path in self.folder.glob(f"{split}_*.npy")]
            for path in (*ours, self.note, self.folder / ".lock"):
                path.unlink()
            what = f"the text has {tokens.total():,} tokens, too few for both train and val"
            hint = f"a --shard-tokens below {tokens.total()} or a --val-fraction closer to 0.5"
            raise UserError(f"{what} (documents: {documents:,}): give more text, {hint}")
        for split, file in self.files.items():  # the last shard of a split is shorter
            file.seek(0)
            write_array_header_1_0(file, HEADER | {"shape": (self.tokens[split] % self.limit,)})
        self.save()
        paths = sorted(self.folder.glob("*.npy"))
        meta = {"made_from": self.made_from, "tokenizer": "gpt2", "vocab_size": VOCAB_SIZE}
        meta |= {"documents": documents, "empty": self.position.empty, "tokens": self.tokens}
        meta |= {"shards": [described(path) for path in tqdm(paths, disable=None)]}
        write_json(self.meta, meta)
        self.note.unlink()
        (self.folder / ".lock").unlink()


def described(path: Path) -> dict:
    """What meta.json says about a shard. Raises UserError if it is damaged."""
    return {"name": path.name, "tokens": len(map_ids(path)), "sha256": sha256(path)}


def verify(folder: Path) -> None:
    """Compare every shard in a folder with its meta.json. Raises UserError at a difference."""
    file = folder / "meta.json"
    meta = read_json(file) if file.exists() else {}
    if "shards" not in meta:
        raise UserError(f"no meta.json in {folder} lists shards: give a folder of common.shards")
    for shard in tqdm(meta["shards"], disable=None):
        if described(folder / shard["name"]) != shard:
            raise UserError(f"{folder / shard['name']} is not what was written: tokenize again")
    n_tokens = sum(shard["tokens"] for shard in meta["shards"])
    print(f"{folder}: {len(meta['shards'])} shards, {n_tokens:,} tokens, as written")
