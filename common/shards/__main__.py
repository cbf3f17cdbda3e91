"""A text of any size, tokenized once: shards of GPT-2's ids, on which stage 7 trains.

    python -m common.shards fineweb-edu --out data/fineweb-edu     # 10 billion tokens, 20 GB
    python -m common.shards my_folder --out data/mine --val-fraction 0.01
    python -m common.shards data/mine --verify
    python 7_gpt2_train_long_run.py --data data/mine

A source is fineweb-edu, openwebtext, a file, or a folder: text, JSON lines or Parquet, each also
with gzip or zstd. Documents are tokenized on all cores, <|endoftext|> before each, and written as
uint16 to .npy files of --shard-tokens, the first of them for validation. After an interruption the
same command resumes, and ends with the same bytes. meta.json says what was read and written.
"""

import itertools
import os
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

from common.kit.cli import UserError, run
from common.kit.disk import check_room, run_folder
from common.shards.documents import PIECE, Batch, read, without_long_gaps
from common.shards.sources import Source, find_source
from common.shards.writer import Shards, verify
from common.tokenizer import gpt2_tokenizer

BENCH_CHARACTERS = 2**24
MAX_IN_FLIGHT = 2**23  # characters read and not yet written


@dataclass
class Options:
    source: Positional[str]  # fineweb-edu, openwebtext, a file or a folder; to --verify: shards
    out: str = "data/shards"  # the folder for the shards
    field: str = "text"  # of a JSON line, or the column of Parquet
    shard_tokens: int = 10**8  # tokens in a shard
    val_fraction: float | None = None  # of the documents, or of the pieces of a single text
    verify: bool = False  # compare the shards in a folder with its meta.json
    bench: bool = False  # the throughput beside tiktoken's alone, on the beginning of the source


def tokenize(batch: Batch, is_val: list[bool]) -> list[np.ndarray]:
    """The ids of a batch's training documents and of its validation documents, uint16 (N,) each."""
    tokenizer = gpt2_tokenizer()
    parts = [[np.empty(0, np.uint16)], [np.empty(0, np.uint16)]]
    for text, split in zip(batch.texts, is_val, strict=True):
        if batch.begins:
            parts[split].append(np.array([tokenizer.eot_token], np.uint16))
        # Half of a surrogate pair, which JSON can hold, becomes "\ufffd", as tiktoken has it.
        text = text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
        for piece in without_long_gaps(text):
            ids = tokenizer.encode_to_numpy(piece, disallowed_special=())
            parts[split].append(ids.astype(np.uint16))
    return [np.concatenate(part) for part in parts]


def tokenized(batches: Iterator[Batch], source: Source, shards: Shards) -> Iterator[tuple]:
    """(batch, its ids), in order, from all cores. Of all documents, or the pieces of a single text,
    those are for validation at which a multiple of 1 / val_fraction is passed."""
    waiting, in_flight, fraction = deque(), 0, shards.progress.made_from["val_fraction"] or 0.0
    count = shards.progress.texts if source.one_text else shards.progress.documents
    sys.setswitchinterval(0.0005)  # seconds; by default a thread waits 5 ms for the interpreter
    with ThreadPoolExecutor(os.cpu_count()) as pool:  # tiktoken releases the interpreter's lock
        for batch in batches:
            is_val = []
            for _ in batch.texts:
                count += source.one_text or batch.begins
                is_val.append(int(count * fraction) > int((count - 1) * fraction))
            size = sum(map(len, batch.texts))
            waiting.append((batch, pool.submit(tokenize, batch, is_val), size))
            in_flight += size
            while in_flight > MAX_IN_FLIGHT:
                done, ids, size = waiting.popleft()
                in_flight -= size
                yield done, ids.result()
        for done, ids, _ in waiting:
            yield done, ids.result()


def fill(shards: Shards, source: Source, batches: Iterator[Batch], quiet: bool = False) -> None:
    """Tokenize the batches into the shards, with a bar of tokens, throughput and time left."""
    seconds = 0.2 if sys.stderr.isatty() else 30  # between two states of the bar
    with tqdm(total=source.tokens, initial=shards.tokens, unit=" tokens", unit_scale=True,
              mininterval=seconds, delay=seconds, disable=quiet) as bar:  # fmt: skip
        for batch, ids in tokenized(batches, source, shards):
            shards.append(batch, *ids)
            bar.total = shards.tokens / batch.done
            bar.update(shards.tokens - bar.n)


def make(options: Options) -> None:
    """Tokenize the source into --out, or resume that."""
    source = find_source(options.source, options.field, leave_out=Path(options.out).expanduser())
    folder, fraction = run_folder(options.out), options.val_fraction
    shards = Shards(folder, {
        "source": options.source, "field": source.field, "shard_tokens": options.shard_tokens,
        "val_fraction": fraction, "files": list(source.files), "bytes": source.bytes,
    })  # fmt: skip
    progress, before = shards.progress, shards.tokens
    if shards.complete:
        print(f"{folder} is complete; --verify checks it")
        return
    check_room(folder, 2 * source.tokens, "the shards")
    files = f"files: {len(source.files)}, {source.bytes / 1e6:,.1f} MB"
    print(f"source: {options.source}, {source.kind}, {files}")
    if before:
        print(f"resumed from {progress.documents:,} documents, {before:,} tokens")
    piece = PIECE
    if source.one_text and fraction:  # small enough that some are for validation
        piece = max(2**10, min(PIECE, int(source.bytes * fraction / 4)))
    started = time.perf_counter()
    try:
        shards.save()
        fill(shards, source, read(source, progress.state, piece))
        shards.finish()
    except OSError as error:
        hint = "make room, and the same command resumes"
        raise UserError(f"{folder} can't be written: {error.strerror}; {hint}") from None
    tokens_per_s = (shards.tokens - before) / (time.perf_counter() - started)
    print(f"written: {len(progress.shards)} shards in {folder}, {shards.tokens:,} tokens")
    print(f"documents: {progress.documents:,}; without text and skipped: {progress.empty:,}")
    print(f"{tokens_per_s:,.0f} tokens/s on {os.cpu_count()} cores")


def bench(source: Source) -> None:
    """Print the throughput from files to shards beside that of tiktoken alone, which tokenizes the
    same text in memory on all cores."""
    batches, size = [], 0
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
            shards = Shards(Path(folder), {"shard_tokens": 10**8, "val_fraction": None})
            started = time.perf_counter()
            fill(shards, source, itertools.islice(read(source), len(batches)), quiet=True)
            shards.save()
            whole.append(shards.tokens / (time.perf_counter() - started))
    print(f"{size:,} characters, {os.cpu_count()} cores, medians of 3")
    print(f"tiktoken alone    {median(alone):>12,.0f} tokens/s")
    ratio = median(whole) / median(alone)
    print(f"files to shards   {median(whole):>12,.0f} tokens/s, {ratio:.2f} of that")


def main(options: Options) -> None:
    if options.verify:
        verify(Path(options.source).expanduser())
    elif options.bench:
        bench(find_source(options.source, options.field))
    else:
        make(options)


if __name__ == "__main__":
    sys.argv[0] = "python -m common.shards"  # as which the help names it
    run(main, Options)
