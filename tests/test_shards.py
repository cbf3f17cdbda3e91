"""Texts of any size to shards on disk, and shards of four formats back."""

import gzip
import itertools
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
from backports import zstd
from conftest import ROOT

from common import documents, shards, shardwriter
from common.cli import UserError, run
from common.data import Batches, load_tokens
from common.disk import lock
from common.documents import read, without_long_gaps
from common.sources import find_source
from common.tokenfiles import Ahead, map_ids, open_tokens
from common.tokenizer import gpt2_tokenizer

DOCUMENTS = [
    f"Page {n}.\n\n  The tide wrote {n * n}…\r\n\tand " + "left. " * (n % 7) for n in range(99)
]
END = 50256


def expected(texts):
    return [i for text in texts for i in (END, *gpt2_tokenizer().encode_ordinary(text))]


def make(*options):
    """python -m common.shards, in this process."""
    try:
        run(shards.main, shards.Options, list(options))
    except SystemExit as stop:
        return stop.code
    return 0


def ids_in(folder, split=""):
    return [int(i) for path in sorted(Path(folder).glob(f"{split}*.npy")) for i in np.load(path)]


def in_order(folder):
    """All ids as they were read: the first shard is the one held out."""
    return ids_in(folder, "val") + ids_in(folder, "train")


def write_source(kind: str, texts=DOCUMENTS) -> str:
    """A file of one of the kinds, plain or compressed."""
    name, _, packed = kind.partition(".")
    if name == "parquet":
        table = pyarrow.table({"other": range(len(texts)), "text": texts})
        sink = pyarrow.BufferOutputStream()
        pyarrow.parquet.write_table(table, sink, row_group_size=10)
        data = sink.getvalue().to_pybytes()
    elif name == "txt":
        data = "".join(texts).encode()
    else:
        data = "".join(json.dumps({"n": n, "text": t}) + "\n" for n, t in enumerate(texts)).encode()
    if packed == "gz":
        data = gzip.compress(data)
    elif packed == "zst":  # two frames, as parallel compressors write
        half = len(data) // 2
        data = zstd.compress(data[:half]) + zstd.compress(data[half:])
    Path(f"source.{kind}").write_bytes(data)
    return f"source.{kind}"


KINDS = [
    f"{name}{packed}" for name in ("jsonl", "parquet", "txt") for packed in ("", ".gz", ".zst")
]


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_gives_the_same_ids(kind, capsys):
    temporary = set(os.listdir(tempfile.gettempdir()))
    assert make(write_source(kind), "--shard-tokens", "500", "--out", "out") == 0
    texts = ["".join(DOCUMENTS)] if kind.startswith("txt") else DOCUMENTS
    ids = expected(texts)
    assert in_order("out") == ids
    meta = json.loads(Path("out/meta.json").read_text())
    assert meta["documents"] == len(texts)
    assert meta["tokens"] == {"val": 500, "train": len(ids) - 500}
    names = ["meta.json", *(f"train_{n:06d}.npy" for n in range(1, -(-len(ids) // 500)))]
    assert sorted(p.name for p in Path("out").iterdir()) == [*names, "val_000000.npy"]
    assert all(np.load(p).dtype == np.uint16 for p in Path("out").glob("*.npy"))
    assert make("out", "--verify") == 0
    assert f"{len(ids):,} tokens, each as it was written" in capsys.readouterr().out
    assert not {n for n in set(os.listdir(tempfile.gettempdir())) - temporary if n[:3] == "tmp"}


def test_a_folder_of_texts_is_a_document_a_file(capsys):
    for name in ("b/two.txt", "a.txt", "b/one.txt"):
        Path("texts/b").mkdir(parents=True, exist_ok=True)
        Path("texts", name).write_text(f"This is {name}. " * 30)
    Path("texts/notes.md").write_text("no text of the corpus")
    assert make("texts", "--out", "out", "--shard-tokens", "100") == 0
    texts = [f"This is {name}. " * 30 for name in ("a.txt", "b/one.txt", "b/two.txt")]
    assert in_order("out") == expected(texts)
    out = capsys.readouterr().out
    assert "text, files: 3, " in out and "passed over: 1 files" in out
    assert make("texts", "--out", "texts/val", "--val-fraction", "0.4") == 0  # whole documents
    assert ids_in("texts/val", "val") == expected(texts[2:])
    assert make("texts", "--out", "texts/val", "--val-fraction", "0.4") == 0  # not its own source


@pytest.mark.parametrize("name", ["a[1].jsonl", "a*.jsonl", "b::c.jsonl", "C.JSONL", "a*.txt"])
def test_names_are_names(name):
    """No pattern, no address, capital letters or not."""
    for other in (name, "ab" + Path(name).suffix):
        Path("odd").mkdir(exist_ok=True)
        line = json.dumps({"text": other}) + "\n"
        Path("odd", other).write_text(line if name.lower().endswith("jsonl") else other)
    assert make("odd", "--out", "out", "--shard-tokens", "3") == 0
    assert sorted(in_order("out")) == sorted(expected([name, "ab" + Path(name).suffix]))


def test_other_columns_and_their_types_do_not_matter():
    rows = [{"text": None, "meta": 1}] * 50 + [{"text": "2021-03-04", "meta": "x", "new": []}] * 50
    Path("t.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert make("t.jsonl", "--out", "out", "--shard-tokens", "50") == 0
    assert in_order("out") == expected(["2021-03-04"] * 50)


def test_a_byte_order_mark_is_no_text():
    Path("t.txt").write_bytes("\ufeffTo be".encode() + b" or not" * 50)
    assert make("t.txt", "--out", "out", "--shard-tokens", "20") == 0
    assert in_order("out") == expected(["To be" + " or not" * 50])


def test_much_white_space_takes_no_time():
    began = time.perf_counter()
    for text in ("a " + " " * 3_000_000 + "b c", "a" + "\xa0" * 2_000_000 + "b",
                 "a" + "\x0b" * 2_000_000 + "b", "word" * 900_000 + " end"):  # fmt: skip
        Path("t.txt").write_text(text)
        Path("t.jsonl").write_text(json.dumps({"text": text}) + "\n")
        counts = []
        for name in ("t.txt", "t.jsonl"):
            batches = read(find_source(name, "text"))
            ids = [shards.tokenize(batch, [0] * len(batch.texts))[0] for batch in batches]
            counts.append(sum(map(len, ids)))
        assert counts[0] == counts[1] > 3
    assert time.perf_counter() - began < 40


def test_pieces_of_a_text_have_the_tokens_of_the_whole(monkeypatch):
    monkeypatch.setattr(documents, "PIECE", 40)
    rng = random.Random(0)
    for _ in range(60):
        parts = [
            "a",
            "Bc",
            "'s",
            " ",
            "  ",
            "\n",
            "\n\n",
            "\r\n",
            "\t",
            "1",
            "?!",
            "é",
            "\u3000",
            "\xa0",
        ]
        text = "".join(rng.choices(parts, k=300))
        with open("t.txt", "w", newline="") as file:
            file.write(text)
        batches = list(read(find_source("t.txt", "text")))
        assert "".join(t for batch in batches for t in batch.texts) == text
        ids = [i for b in batches for t in b.texts for i in gpt2_tokenizer().encode_ordinary(t)]
        assert ids == gpt2_tokenizer().encode_ordinary(text)
    assert len(batches) > 5 and [sum(b.begins) for b in batches][:2] == [1, 0]


def test_long_white_space_does_not_overflow_and_keeps_its_tokens():
    encode = gpt2_tokenizer().encode_ordinary
    for end in ("x", "\nx", "\t\t.", ""):
        text = "a" + " " * 600_000 + end + " b  c"
        pieces = without_long_gaps(text)
        assert "".join(pieces) == text and len(pieces) > 1
        assert [i for piece in pieces for i in encode(piece)] == encode(text)
    text = "a" + " " * 2_000_000 + "x"  # on which the whole would fail
    assert sum(len(encode(piece)) for piece in without_long_gaps(text)) > 10
    assert without_long_gaps("a  b") == ["a  b"]


@pytest.mark.parametrize("kind", ["jsonl", "parquet", "txt"])
def test_reading_goes_on_from_any_state(kind, monkeypatch):
    def flat(batches):
        return [pair for b in batches for pair in zip(b.texts, b.begins, strict=True)]

    monkeypatch.setattr(documents, "PIECE", 300)
    source = find_source(write_source(kind), "text")
    batches = list(read(source))
    assert len(batches) > 5
    for n, batch in enumerate(batches):
        state = json.loads(json.dumps(batch.state))
        assert flat(read(source, state)) == flat(batches[n + 1 :])


def test_a_fraction_of_the_documents_is_held_out():
    source = write_source("jsonl")
    assert make(source, "--out", "out", "--val-fraction", "0.2") == 0
    held = [d for n, d in enumerate(DOCUMENTS) if (n + 1) % 5 == 0]
    assert ids_in("out", "val") == expected(held)
    assert ids_in("out", "train") == expected([d for d in DOCUMENTS if d not in held])
    train, held_out = (open_tokens("out").train, open_tokens("out").held_out)
    assert len(train) + len(held_out) == len(expected(DOCUMENTS))


def test_documents_without_text_are_none():
    texts = ["one", "", None, "two"] * 20
    with open("t.jsonl", "w") as file:
        file.writelines(json.dumps({"text": t}) + "\n\n" for t in texts)
    assert make("t.jsonl", "--out", "out", "--shard-tokens", "10") == 0
    assert in_order("out") == expected([t for t in texts if t])
    meta = json.loads(Path("out/meta.json").read_text())
    assert (meta["documents"], meta["empty"]) == (40, 40 + 80)  # and empty lines


def test_killed_at_any_moment_it_goes_on_to_the_same_bytes(tmp_path):
    """One process imports everything once, and forks children that are killed at random moments."""
    texts = [f"{text} {n}" for n in range(500) for text in DOCUMENTS]
    source = write_source("jsonl", texts)
    options = (source, "--shard-tokens", "60000")
    assert make(*options, "--out", "whole") == 0
    code = f"""
import os, random, signal, sys, time
sys.path.insert(0, {str(ROOT)!r})
from common import shards, shardwriter
from common.cli import run
shardwriter.SECONDS_BETWEEN_NOTES = 0
shards.MOST_IN_FLIGHT = 2**14
shards.gpt2_tokenizer()
random.seed({random.randrange(10**9)})
kills = 0
while True:
    child = os.fork()
    if child == 0:
        run(shards.main, shards.Options, [*{options!r}, "--out", "killed"])
        os._exit(0)
    if kills < 10:
        time.sleep(random.uniform(0.05, 0.5))
        os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    if status == 0:
        break
    kills += 1
print("kills", kills)
"""
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert int(re.search(r"kills (\d+)", done.stdout)[1]) >= 3
    assert done.stdout.count("going on after") >= 2
    files = {p.name: p.read_bytes() for p in Path("whole").iterdir()}
    assert {p.name: p.read_bytes() for p in Path("killed").iterdir()} == files


def test_a_kill_between_rename_and_note_loses_nothing(monkeypatch):
    """A shard has its name, and progress.json does not know of it."""
    source = write_source("jsonl", DOCUMENTS * 5)
    options = (source, "--shard-tokens", "3000", "--val-fraction", "0.3")
    assert make(*options, "--out", "whole") == 0
    monkeypatch.setattr(shardwriter, "SECONDS_BETWEEN_NOTES", 0)
    monkeypatch.setattr(shards, "MOST_IN_FLIGHT", 2**12)
    replace, count = os.replace, itertools.count(1)

    def killed(a, b):
        replace(a, b)
        if str(b).endswith(".npy") and next(count) in (2, 3, 5):
            raise KeyboardInterrupt

    monkeypatch.setattr(os, "replace", killed)
    assert [make(*options, "--out", "killed") for _ in range(4)] == [130, 130, 130, 0]
    files = {p.name: p.read_bytes() for p in Path("whole").iterdir()}
    assert {p.name: p.read_bytes() for p in Path("killed").iterdir()} == files


def test_ctrl_c_is_no_crash_and_the_same_command_goes_on(tmp_path):
    source = write_source("jsonl", DOCUMENTS * 800)
    command = [sys.executable, "-m", "common.shards", source, "--out", "out"]
    process = subprocess.Popen(
        command, cwd=tmp_path, env=os.environ | {"PYTHONPATH": str(ROOT)}, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )  # fmt: skip
    process.stdout.readline()  # which source it is
    time.sleep(0.3)
    process.send_signal(signal.SIGINT)
    _, stderr = process.communicate(timeout=30)
    assert process.returncode == 130 and "Traceback" not in stderr, stderr
    assert not list(Path("out").glob("*.npy"))
    assert make(source, "--out", "out", "--shard-tokens", "1000") == 2  # not the same command
    assert make(source, "--out", "out", "--val-fraction", "0.5") == 2


def test_complete_shards_are_left_alone_and_others_refused(capsys):
    source = write_source("jsonl")
    assert make(source, "--out", "out", "--shard-tokens", "500") == 0
    before = {p.name: p.stat().st_mtime_ns for p in Path("out").iterdir()}
    assert make(source, "--out", "out", "--shard-tokens", "500") == 0
    assert "is complete" in capsys.readouterr().out
    assert make(source, "--out", "out", "--shard-tokens", "600") == 2
    assert "begun with another shard_tokens, 500" in capsys.readouterr().err
    assert {p.name: p.stat().st_mtime_ns for p in Path("out").iterdir()} == before
    Path("busy").mkdir()
    held = lock(Path("busy/.lock"))
    assert make(source, "--out", "busy") == 2
    assert "another process writes into busy" in capsys.readouterr().err
    held.close()
    Path("mine").mkdir()
    Path("mine/letter.txt").write_text("mine")
    assert make(source, "--out", "mine") == 2
    assert [p.name for p in Path("mine").iterdir()] == ["letter.txt"]


@pytest.mark.parametrize("how", ["flipped", "truncated", "missing", "too large"])
def test_verify_finds_what_was_changed(how, capsys):
    make(write_source("jsonl"), "--out", "out", "--shard-tokens", "500")
    path = Path("out/train_000002.npy")
    data = bytearray(path.read_bytes())
    data[300] ^= 1
    path.unlink()
    if how == "truncated":
        data = data[:400]
    if how == "too large":
        data[300:302] = b"\xff\xff"
    if how != "missing":
        path.write_bytes(data)
    assert make("out", "--verify") == 2
    stderr = capsys.readouterr().err
    assert "train_000002.npy" in stderr and stderr.count("error:") == 1


def test_the_rate_is_printed_beside_tiktokens(capsys):
    assert make(write_source("jsonl"), "--bench") == 0
    out = capsys.readouterr().out
    alone, whole, share = (
        float(x.replace(",", "")) for x in re.findall(r"([\d,.]+) (?:tokens/s|of that)", out)
    )
    assert 0.001 < share and share == pytest.approx(whole / alone, abs=0.006)


def test_bad_sources_are_one_line(capsys, monkeypatch):
    def refused(words, *options):
        assert make(*options, "--out", "out") == 2
        stderr = capsys.readouterr().err
        assert stderr.startswith("error: ") and stderr.count("\n") == 1 and words in stderr
        assert not list(Path("out").glob("*.npy")) if Path("out").exists() else True
        shutil.rmtree("out", ignore_errors=True)

    refused("is none of fineweb-edu, openwebtext", "gone")
    Path("empty").mkdir()
    refused("whose name ends as .txt", "empty")
    for name in ("a.txt", "a.jsonl"):
        Path("mixed").mkdir(exist_ok=True)
        Path("mixed", name).write_text("{}")
    refused("several kinds, json, text", "mixed")
    Path("t.txt").write_text("")
    refused("or only empty ones", "t.txt")
    Path("t.txt").write_bytes(b"good\n" * 100 + b"\xff\xfe bad")
    refused("t.txt is no UTF-8 (byte 0xff)", "t.txt")
    Path("t.jsonl").write_text('{"body": "x"}\n')
    refused("line 1 has no text: give --field as one of body", "t.jsonl")
    Path("t.jsonl").write_text('{"text": "x"}\n{"n": 1}\n')
    refused("t.jsonl can't be read: line 2 has no text", "t.jsonl")
    Path("t.jsonl").write_text('{"text": 7}\n')
    refused("int where text should be", "t.jsonl")
    Path("t.jsonl").write_text("[1]\n")
    refused("line 1 is no object", "t.jsonl")
    Path("t.jsonl").write_text('{"text": "x"}\n{"text": ')
    refused("t.jsonl can't be read: line 2 is no JSON", "t.jsonl")
    Path("t.jsonl").write_bytes(b'{"text": "\xff"}\n')
    refused("t.jsonl", "t.jsonl")
    parquet = write_source("parquet")
    refused("it has no body: give --field as one of other, text", parquet, "--field", "body")
    data = Path(parquet).read_bytes()
    Path("cut.parquet").write_bytes(data[: len(data) // 2])
    refused("cut.parquet can't be read", "cut.parquet")
    for kind in ("txt.gz", "jsonl.gz", "txt.zst", "parquet.gz"):
        data = Path(write_source(kind)).read_bytes()
        Path(f"cut.{kind}").write_bytes(data[: len(data) // 3])
        refused(f"cut.{kind}", f"cut.{kind}")
    monkeypatch.setattr(documents, "MOST_CHARACTERS", 1000)
    Path("t.txt").write_text("x" * 200_000)
    refused("t.txt has 131,072 characters in a document", "t.txt")
    Path("t.jsonl").write_text(json.dumps({"text": "x" * 2000}) + "\n")
    refused("t.jsonl has 2,000 characters in a document", "t.jsonl")
    source = write_source("jsonl", ["few words"])
    refused("leave nothing to train on", source)
    refused("leave nothing to train on", source, "--val-fraction", "0.1")
    refused("--val-fraction is 1", source, "--val-fraction", "1")
    refused("--shard-tokens is 0", source, "--shard-tokens", "0")
    for name, text in {"progress.json": "", "meta.json": "{}"}.items():
        Path("odd").mkdir(exist_ok=True)
        Path("odd", name).write_text(text)
        assert make(source, "--out", "odd") == 2
        assert "is damaged, or not ours" in capsys.readouterr().err
    usage = shutil._ntuple_diskusage(10**9, 10**9, 10)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    refused("the shards take about", source)
    refused("fineweb-edu can't be had from the Hub", "fineweb-edu")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"):  # a network that leads nowhere
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    assert make("fineweb-edu", "--out", "hub") == 2 and not Path("hub").exists()
    assert "error: fineweb-edu can't be had from the Hub (ConnectError" in capsys.readouterr().err


def test_a_full_disk_leaves_no_shard_and_can_go_on(tmp_path):
    source = write_source("jsonl", DOCUMENTS * 20)
    assert make(source, "--out", "whole", "--shard-tokens", "30000") == 0
    code = f"""
import resource, sys
sys.path.insert(0, {str(ROOT)!r})
resource.setrlimit(resource.RLIMIT_FSIZE, (40_000, 40_000))
from common import shards
from common.cli import run
run(shards.main, shards.Options, [{source!r}, "--out", "out", "--shard-tokens", "30000"])
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 2 and "make room, and the same command goes on" in done.stderr
    assert "Traceback" not in done.stderr and not list(Path("out").glob("*.npy"))
    assert make(source, "--out", "out", "--shard-tokens", "30000") == 0
    files = {p.name: p.read_bytes() for p in Path("whole").iterdir()}
    assert {p.name: p.read_bytes() for p in Path("out").iterdir()} == files


# Reading


def header(count: int) -> bytes:
    """llm.c's: 256 int32."""
    numbers = np.zeros(256, "<i4")
    numbers[:3] = 20240520, 1, count
    return numbers.tobytes()


def write_formats(parts: list[np.ndarray], held_out: np.ndarray) -> None:
    """The same ids as three projects keep them."""
    for folder in ("nanogpt", "build", "llmc"):
        Path(folder).mkdir()
    Path("nanogpt/train.bin").write_bytes(np.concatenate(parts).tobytes())
    Path("nanogpt/val.bin").write_bytes(held_out.tobytes())
    for n, ids in enumerate([held_out, *parts]):
        split = "train" if n else "val"
        np.save(f"build/edufineweb_{split}_{n:06d}.npy", ids)
        Path(f"llmc/fineweb_{split}_{n:06d}.bin").write_bytes(header(len(ids)) + ids.tobytes())


def test_other_peoples_files_are_read_as_they_are():
    rng = np.random.default_rng(0)
    parts = [rng.integers(0, 50257, n, dtype=np.uint16) for n in (1000, 3, 700)]
    held_out = rng.integers(0, 50257, 90, dtype=np.uint16)
    write_formats(parts, held_out)
    whole = np.concatenate(parts)
    for folder in ("nanogpt", "build", "llmc"):
        tokens = open_tokens(folder)
        assert len(tokens.train) == 1703 and len(tokens.held_out) == 90
        for start, stop in ((0, 1703), (998, 1005), (1000, 1003), (5, 5), (1600, 9999), (0, 1)):
            assert np.array_equal(tokens.train[start:stop], whole[start:stop]), folder
        assert np.array_equal(tokens.held_out[:], held_out)
        assert all(isinstance(ids, np.memmap) for _, ids in tokens.train.parts)


def test_without_held_out_files_the_end_is_held_out():
    ids = np.arange(1000, dtype=np.uint16)
    Path("one.bin").write_bytes(ids.tobytes())
    tokens = open_tokens("one.bin")
    assert np.array_equal(tokens.train[:], ids[:900])
    assert np.array_equal(tokens.held_out[:], ids[900:])
    np.save("two.npy", ids)
    assert np.array_equal(open_tokens("two.npy").train, load_tokens("two.npy").train)


def test_shards_are_one_stream_of_windows():
    """Every token of three shards is predicted once an epoch, but a stated tail."""
    ids = np.arange(1, 1001, dtype=np.uint16)
    Path("s").mkdir()
    for n, part in enumerate(np.split(ids, [333, 500])):
        np.save(f"s/train_{n}.npy", part)
    np.save("s/val.npy", ids[:20])
    batches = Batches(open_tokens("s").train, 3, 10)
    assert (batches.n_windows, batches.tail) == (99, 9)
    seen = Counter(int(i) for _ in range(33) for i in next(batches)[1].flatten())
    assert seen == dict.fromkeys(range(2, 992), 1) and batches.state() == {
        "epoch": 1,
        "position": 0,
    }


def test_reading_ahead_changes_nothing():
    def stream():
        return Batches(np.arange(777), 4, 7, seed=9)

    plain, ahead = stream(), Ahead(stream(), pin=False)
    for _ in range(60):
        assert all(a.equal(b) for a, b in zip(next(plain), next(ahead), strict=True))
        assert plain.state() == ahead.state()
    again = Ahead(stream(), pin=False)
    again.restore(ahead.state())
    assert again.state() == ahead.state()
    assert next(plain)[0].equal(next(again)[0])
    assert 0 < ahead.waited < 1


def test_a_wait_for_data_is_counted():
    class Slow(Batches):
        def __next__(self):
            time.sleep(0.05)
            return super().__next__()

    ahead = Ahead(Slow(np.arange(777), 4, 7), pin=False)
    for _ in range(3):
        next(ahead)
    busy = ahead.waited
    assert busy > 0.12
    for _ in range(3):
        time.sleep(0.08)  # a step that takes longer than reading
        next(ahead)
    assert ahead.waited - busy < 0.02


def test_bad_token_files_are_one_line():
    def refused(words, path):
        with pytest.raises(UserError, match=re.escape(words)):
            open_tokens(path).train[:]

    ids = np.arange(1000, dtype=np.uint16)
    Path("s").mkdir()
    np.save("s/train.npy", ids)
    data = Path("s/train.npy").read_bytes()
    Path("s/train.npy").write_bytes(data[:-100])
    refused("s/train.npy is no file of token ids", "s")
    np.save("s/train.npy", np.concatenate([np.zeros(5000, np.uint16), ids + 50000, ids]))
    refused("s/train.npy has ids from", "s")  # beyond the sample: found when it is read
    np.save("s/train.npy", ids + 50000)
    refused("s/train.npy begins with ids from 50000", "s")
    np.save("s/train.npy", np.zeros((3, 3)))
    refused("no integers of shape (N,)", "s")
    np.save("s/train.npy", ids)
    Path("s/val.bin").write_bytes(ids.tobytes())
    refused("has .npy and .bin files", "s")
    Path("s/val.bin").unlink()
    np.save("s/val.npy", ids[:1])
    refused("holds out 1 ids", "s")
    Path("s/val.npy").unlink()
    Path("s/meta.json").write_text('{"shards": [{"name": "train_7.npy"}]}')
    refused("lacks train_7.npy", "s")
    Path("s/meta.json").unlink()
    Path("s/meta.pkl").write_text("")
    refused("meta.pkl", "s")
    Path("s/meta.pkl").unlink()
    Path("b").mkdir()
    Path("b/x_train.bin").write_bytes(header(1000) + ids.tobytes())
    Path("b/y_train.bin").write_bytes(ids.tobytes())
    refused("with llm.c's header and without", "b")
    Path("s/progress.json").write_text("{}")
    refused("is not complete", "s")
    Path("v").mkdir()
    np.save("v/val_0.npy", ids)
    refused("held-out shards alone", "v")
    for data, words in (
        (ids.tobytes()[:-1], "cut off"),
        (b"", "empty"),
        (b"To be, or not to be. " * 50, "is a text"),
        (header(1000) + ids.tobytes()[:-2], "1,000 ids would be 3,024"),
        (header(999) + ids.tobytes(), "3,024 bytes"),
        (os.urandom(4096), "begins with"),
        (ids.astype(np.uint32).tobytes(), "ids of 32 bits"),
    ):
        Path("x.bin").write_bytes(data)
        refused(words, "x.bin")


@pytest.mark.usefixtures("quick_peak")
def test_stage_6_trains_on_shards(call, text_file):
    text = Path(text_file).read_text()
    source = write_source("jsonl", [text[i : i + 400] for i in range(0, len(text), 400)])
    assert make(source, "--out", "mine", "--shard-tokens", "700") == 0
    small = ("--model", "gpt-nano", "--batch-size", "2", "--block-size", "32", "--lr", "1e-2",
             "--total-batch-tokens", "128", "--compile", "no", "--data", "mine")  # fmt: skip
    code, stdout, stderr = call(6, *small, "--steps", "20", "--eval-tokens", "300")
    assert code == 0, stderr
    assert "700 held out" in stdout and "npy files, mapped" in stdout
    losses = [float(x) for x in re.findall(r"held out: loss ([\d.]+)", stdout)]
    assert losses[-1] < losses[0] - 1
    code, stdout, _ = call(6, *small, "--bench")
    share = float(re.search(r"waiting for data: ([\d.]+)%", stdout)[1])
    assert code == 0 and share < 50  # of steps of a few milliseconds, on a busy machine


def test_one_hash_of_a_shard_is_its_files():
    make(write_source("jsonl"), "--out", "out", "--shard-tokens", "500")
    meta = json.loads(Path("out/meta.json").read_text())
    for shard in meta["shards"]:
        found = subprocess.run(
            ["sha256sum", f"out/{shard['name']}"], capture_output=True, text=True
        )
        assert found.stdout.split()[0] == shard["sha256"]
        assert len(map_ids(Path("out", shard["name"]))) == shard["tokens"]
