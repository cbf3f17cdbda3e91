"""Tokenize a text of any size, once, into shards of GPT-2's ids, on which stage 7 trains.

    python -m common.shards fineweb-edu --out data/fineweb-edu    # 20 GB
    python -m common.shards my_folder --out data/mine --val-fraction 0.01
    python -m common.shards data/mine --verify
    python 7_gpt2_train_long_run.py --recipe gpt2-124m --data data/mine

A source is fineweb-edu, openwebtext, a file, or a folder: text, JSON lines or Parquet, each also
with gzip or zstd. Documents are tokenized on all cores, with <|endoftext|> before each, and written
as uint16 to .npy files of --shard-tokens, the first of them for validation. After an interruption
the same command resumes, and ends with the same bytes. meta.json says what was read and written.

For more text than one machine can tokenize, use Hugging Face's datatrove: stage 7 reads its .ds
files as they are.
"""

import os
import sys
import time
from collections import deque
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from tqdm import tqdm

from common.kit.cli import require, run
from common.kit.disk import check_room, run_folder
from common.shards.documents import PIECE, Batch, find_files, read, without_long_gaps
from common.shards.writer import Shards, verify
from common.tokenizer import gpt2_tokenizer

MAX_IN_FLIGHT = 2**23  # characters that are read but not yet written


@dataclass
class Options:
    source: str  # fineweb-edu, openwebtext, a file or a folder; with --verify: shards
    out: str = "data/shards"  # write the shards to this folder
    field: str = "text"  # read this field of a JSON line, or column of Parquet
    shard_tokens: int = 10**8  # put this many tokens in a shard
    val_fraction: float | None = None  # validate on this share; by default, on the first shard
    verify: bool = False  # compare a folder's shards with its meta.json


def tokenize(batch: Batch, val_fraction: float) -> dict[str, np.ndarray]:
    """The ids of a batch's training and validation documents, uint16 (N,) each. A document
    is for validation if its number passes a multiple of 1 / val_fraction."""
    tokenizer = gpt2_tokenizer()
    ids = {"train": [[]], "val": [[]]}
    for n, text in enumerate(batch.texts, batch.first):
        is_val = int(n * val_fraction) > int((n - 1) * val_fraction)
        here = ids["val" if is_val else "train"]
        if batch.begins:
            here.append([tokenizer.eot_token])
        # A lone surrogate, which JSON can hold, becomes "\ufffd", as in tiktoken.
        text = text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
        for piece in without_long_gaps(text):
            here.append(tokenizer.encode_to_numpy(piece, disallowed_special=()))
    return {s: np.concatenate(p, dtype=np.uint16, casting="unsafe") for s, p in ids.items()}


def tokenized(batches: Iterator[Batch], val_fraction: float) -> Iterator[tuple]:
    """(batch, its ids), in order, from all cores."""
    waiting, in_flight = deque(), 0
    sys.setswitchinterval(0.0005)  # seconds; by default a thread waits 5 ms for the GIL
    with ThreadPoolExecutor(os.cpu_count()) as pool:  # tiktoken releases the GIL
        for batch in batches:
            waiting.append((batch, pool.submit(tokenize, batch, val_fraction)))
            in_flight += sum(map(len, batch.texts))
            while in_flight > MAX_IN_FLIGHT:
                done, ids = waiting.popleft()
                in_flight -= sum(map(len, done.texts))
                yield done, ids.result()
        for done, ids in waiting:
            yield done, ids.result()


def main(options: Options) -> None:
    if options.verify:
        verify(Path(options.source).expanduser())
        return
    require("pyarrow", "pyarrow", "python -m common.shards")
    files = find_files(options.source, leave_out=Path(options.out).expanduser())
    folder, n_bytes = run_folder(options.out), sum(files.values())
    names = ("source", "field", "shard_tokens", "val_fraction")
    made_from = {name: getattr(options, name) for name in names}
    shards = Shards(folder, made_from | {"files": list(files), "bytes": n_bytes})
    if shards.complete:
        print(f"{folder} is complete; --verify checks it")
        return
    check_room(folder, n_bytes / 2, "the shards")  # an id has 2 bytes, for about 4 of plain text
    print(f"source: {options.source}, files: {len(files)}, {n_bytes / 1e6:,.1f} MB")
    start, before = shards.position, shards.tokens.total()
    if before:
        print(f"resumed from {start.documents:,} documents, {before:,} tokens")
    # Small enough that a single short text has some four pieces for validation.
    piece = int(np.clip(n_bytes * (options.val_fraction or 1) / 4, 2**10, PIECE))
    batches, began = read(files, start, options.field, piece), time.perf_counter()
    seconds = 0.2 if sys.stderr.isatty() else 30  # between updates of the bar
    how = {"unit": "B", "unit_scale": True, "mininterval": seconds, "delay": seconds}
    with tqdm(total=n_bytes, initial=start.bytes, **how) as bar:
        shards.save()
        for batch, ids in tokenized(batches, options.val_fraction or 0):
            shards.append(batch, ids)
            bar.update(batch.end.bytes - bar.n)
    shards.finish()
    end, n_tokens, seconds = shards.position, shards.tokens.total(), time.perf_counter() - began
    print(f"written: {n_tokens:,} tokens in {folder}")
    print(f"documents: {end.documents:,}; skipped without text: {end.empty:,}")
    print(f"{(n_tokens - before) / seconds:,.0f} tokens/s on {os.cpu_count()} cores")


if __name__ == "__main__":
    sys.argv[0] = "python -m common.shards"  # the name that the help shows
    run(main, Options)
