"""A text of any size, tokenized once: shards of GPT-2's ids, which stage 6 trains on.

    python -m common.shards fineweb-edu --out data/fineweb-edu     # 10 billion tokens, 20 GB
    python -m common.shards my_folder --out data/mine --val-fraction 0.01
    python -m common.shards data/mine --verify
    python 6_gpt2_train_hyparam.py --data data/mine

A source is fineweb-edu, openwebtext, a file, or a folder: text, JSON lines or Parquet, each also
with gzip or zstd. Documents are tokenized on all cores, <|endoftext|> before each, and written as
uint16 to .npy files of --shard-tokens, the first of them held out. Interrupted, the same command
goes on where it stopped, and ends with the same bytes. meta.json says what was read and written.
"""

import os
import signal
import sys
import tempfile
import time
from collections import deque
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import numpy as np
from tqdm import tqdm
from tyro.conf import Positional

from common.cli import UserError, check_positive, run
from common.disk import check_room
from common.documents import Batch, read, without_long_gaps
from common.runlog import run_folder
from common.shardwriter import Shards, verify
from common.sources import COMPRESSED, Source, find_source
from common.tokenizer import gpt2_tokenizer

BENCH_CHARACTERS = 2**24
MOST_IN_FLIGHT = 2**23  # characters read and not yet written


@dataclass
class Options:
    source: Positional[str]  # fineweb-edu, openwebtext, a file or a folder; to --verify: shards
    out: str = "data/shards"  # the folder for the shards
    field: str = "text"  # of a JSON line, or the column of Parquet
    shard_tokens: int = 10**8  # tokens in a shard
    val_fraction: float | None = None  # of the documents held out, of one text: of its pieces
    verify: bool = False  # check the shards in a folder against its meta.json
    bench: bool = False  # the rate beside tiktoken's alone, on the beginning of the source


def tokenize(batch: Batch, held_out: list[bool]) -> list[np.ndarray]:
    """The ids of a batch's documents, uint16 (N,): of those to train on, and of those held out."""
    tokenizer = gpt2_tokenizer()
    end_of_text = np.array([tokenizer.eot_token], np.uint16)
    parts = [[np.empty(0, np.uint16)], [np.empty(0, np.uint16)]]
    for text, begins, held in zip(batch.texts, batch.begins, held_out, strict=True):
        if begins:
            parts[held].append(end_of_text)
        for piece in without_long_gaps(text):
            ids = tokenizer.encode_to_numpy(piece, disallowed_special=())
            parts[held].append(ids.astype(np.uint16))
    return [np.concatenate(part) for part in parts]


def tokenized(batches: Iterator[Batch], shards: Shards, by_piece: bool) -> Iterator[tuple]:
    """(batch, its ids), in order, from all cores. Held out are those documents, of a single text
    those pieces, at which a multiple of 1 / val_fraction is passed."""
    waiting, in_flight, count = deque(), 0, shards.texts if by_piece else shards.documents
    fraction = shards.made_from["val_fraction"] or 0.0
    sys.setswitchinterval(0.0005)  # seconds; by default threads wait 5 ms for the interpreter
    with ThreadPoolExecutor(os.cpu_count()) as pool:  # tiktoken lets go of the interpreter's lock
        for batch in batches:
            held_out = []
            for begins in batch.begins:
                count += by_piece or begins
                held_out.append(int(count * fraction) > int((count - 1) * fraction))
            size = sum(map(len, batch.texts))
            waiting.append((batch, pool.submit(tokenize, batch, held_out), size))
            in_flight += size
            while in_flight > MOST_IN_FLIGHT:
                done, ids, size = waiting.popleft()
                in_flight -= size
                yield done, ids.result()
        for done, ids, _ in waiting:
            yield done, ids.result()


def fill(shards: Shards, source: Source, batches: Iterator[Batch], quiet: bool = False) -> None:
    """Tokenize the batches into the shards, with a bar of tokens, rate and time left."""
    sizes = [0 if file.startswith("hf:") else Path(file).stat().st_size for file in source.files]
    by_piece = source.kind == "text" and len(sizes) == 1
    seconds = 0.2 if sys.stderr.isatty() else 30  # between looks of the bar
    with tqdm(total=source.tokens or None, initial=shards.tokens, unit=" tokens", unit_scale=True,
              mininterval=seconds, delay=seconds, disable=quiet) as bar:  # fmt: skip
        for batch, ids in tokenized(batches, shards, by_piece):
            shards.append(batch, *ids)
            if source.bytes:  # a share of the files, as they are on the disk
                file = batch.state["file"]
                inside = min(batch.read / (3 if packed(source) else 1), sizes[file])
                share = (sum(sizes[:file]) + inside) / source.bytes
                bar.total = round(shards.tokens / share) if share else None
            bar.update(shards.tokens - bar.n)
        bar.total = bar.n


def packed(source: Source) -> bool:
    """Whether the files are smaller than the text in them: to about a third."""
    return source.kind == "parquet" or source.files[0].lower().endswith(COMPRESSED)


def make(options: Options) -> None:
    """Tokenize the source into --out, or go on with that."""
    out = Path(options.out).expanduser()
    source = find_source(options.source, options.field, leave_out=out)
    folder = run_folder(options.out)
    made_from = {
        "source": options.source, "field": source.field, "shard_tokens": options.shard_tokens,
        "val_fraction": options.val_fraction, "files": list(source.files), "bytes": source.bytes,
    }  # fmt: skip
    shards = Shards(folder, made_from)
    if shards.complete:
        print(f"{folder} is complete; --verify checks it")
        return
    # A token of two bytes for some four bytes of text, which compressed are one and a third.
    need = 2 * (source.tokens or source.bytes * (3 if packed(source) else 1) / 4)
    check_room(folder, need, "the shards")
    size = f", {source.bytes / 1e6:,.1f} MB" if source.bytes else ""
    print(f"source: {options.source}, {source.kind}, files: {len(source.files)}{size}")
    if shards.documents:
        print(f"going on after {shards.documents:,} documents, {shards.tokens:,} tokens")
    started, before = time.perf_counter(), shards.tokens
    try:
        shards.note()  # that it has begun
        fill(shards, source, read(source, shards.state))
        shards.finish()
    except OSError as error:
        raise UserError(f"{folder} can't be written: {error.strerror}; make room, and the same "
                        "command goes on") from None  # fmt: skip
    rate = (shards.tokens - before) / (time.perf_counter() - started)
    print(f"kept: {len(shards.finished)} shards in {folder}: {shards.documents:,} documents, "
          f"{shards.tokens:,} tokens")  # fmt: skip
    if shards.empty:
        print(f"passed over: {shards.empty:,} documents without text")
    print(f"{rate:,.0f} tokens/s on {os.cpu_count()} cores")


def bench(options: Options) -> None:
    """Print the rate of the whole way, from the files to shards, beside that of tiktoken alone on
    the same text in memory, on all cores, by its own means."""
    source, batches, size = find_source(options.source, options.field), [], 0
    for batch in read(source):
        batches.append(batch)
        size += sum(map(len, batch.texts))
        if size >= BENCH_CHARACTERS:
            break
    texts = [text for batch in batches for text in batch.texts]
    alone, whole = [], []
    for _ in range(3):
        started = time.perf_counter()
        ids = gpt2_tokenizer().encode_ordinary_batch(texts, num_threads=os.cpu_count())
        alone.append(sum(map(len, ids)) / (time.perf_counter() - started))
        del ids
        with tempfile.TemporaryDirectory() as folder:
            made_from = {"shard_tokens": options.shard_tokens, "val_fraction": None}
            shards = Shards(Path(folder), made_from)
            started = time.perf_counter()
            fill(shards, source, (b for b, _ in zip(read(source), batches, strict=False)), True)
            shards.note()
            whole.append(shards.tokens / (time.perf_counter() - started))
    print(f"{size:,} characters, {os.cpu_count()} cores, medians of 3")
    print(f"tiktoken alone    {median(alone):>12,.0f} tokens/s")
    share = median(whole) / median(alone)
    print(f"files to shards   {median(whole):>12,.0f} tokens/s, {share:.2f} of that")


def main(options: Options) -> None:
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # and temporary files go
    check_positive(options, "shard_tokens")
    if options.val_fraction is not None and not 0 < options.val_fraction < 1:
        raise UserError(f"--val-fraction is {options.val_fraction}: give more than 0, less than 1")
    if options.verify:
        verify(Path(options.source).expanduser())
    elif options.bench:
        bench(options)
    else:
        make(options)


if __name__ == "__main__":
    run(main, Options)
