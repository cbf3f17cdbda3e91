"""Texts of any size to shards on disk, and shards of four formats back."""

import errno
import gzip
import hashlib
import itertools
import json
import os
import random
import re
import runpy
import shutil
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
from conftest import ROOT

from common.data import Batches
from common.kit.cli import UserError, run
from common.run.tokenfiles import map_ids, open_tokens
from common.shards import __main__ as shards
from common.shards import documents, writer
from common.shards.documents import Position, find_files, read, without_long_gaps
from common.tokenizer import gpt2_tokenizer

DOCUMENTS = [f"Page {n}.\n\n  Tide {n * n}…\r\n\tand " + "left. " * (n % 7) for n in range(99)]
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


def assert_no_shard(folder, names="*.npy"):
    """A file that was begun is none until its last byte is there: NumPy refuses it."""
    for path in Path(folder).glob(names):
        with pytest.raises(UserError, match="is not a file of token ids"):
            map_ids(path)


def all_bytes(folder):
    return {path.name: path.read_bytes() for path in Path(folder).iterdir()}


def in_order(folder):
    """All ids as they were read: the first shard is for validation."""
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
        parts = data[:half], data[half:]
        data = b"".join(pyarrow.compress(part, "zstd", asbytes=True) for part in parts)
    Path(f"source.{kind}").write_bytes(data)
    return f"source.{kind}"


@pytest.mark.parametrize("packed", ["", ".gz", ".zst"])
@pytest.mark.parametrize("name", ["jsonl", "parquet", "txt"])
def test_every_kind_gives_the_same_ids(name, packed, capsys, monkeypatch):
    Path("temporary").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", "temporary")
    assert make(write_source(name + packed), "--shard-tokens", "500", "--out", "out") == 0
    texts = ["".join(DOCUMENTS)] if name == "txt" else DOCUMENTS
    ids = expected(texts)
    assert in_order("out") == ids
    meta = json.loads(Path("out/meta.json").read_text())
    assert meta["documents"] == len(texts)
    assert meta["tokens"] == {"val": 500, "train": len(ids) - 500}
    names = ["meta.json", *(f"train_{n:06d}.npy" for n in range(1, -(-len(ids) // 500)))]
    assert sorted(p.name for p in Path("out").iterdir()) == [*names, "val_000000.npy"]
    for shard in meta["shards"]:
        path = Path("out", shard["name"])
        assert hashlib.sha256(path.read_bytes()).hexdigest() == shard["sha256"]
        assert np.load(path).dtype == np.uint16 and len(np.load(path)) == shard["tokens"]
    assert make("out", "--verify") == 0
    assert f"{len(ids):,} tokens, as written" in capsys.readouterr().out
    assert not os.listdir("temporary")


def test_a_folder_of_texts_is_a_document_a_file(capsys):
    names = ("a.txt", "b/one.md", "b/two.txt")
    for name in (*names, "1.pdf", "2.pdf", "3.pdf", "b/x.doc", ".a.txt", ".git/b.txt"):
        Path("texts", name).parent.mkdir(parents=True, exist_ok=True)
        Path("texts", name).write_text(f"This is {name}. " * 30)
    assert make("texts", "--out", "out", "--shard-tokens", "100") == 0
    texts = [f"This is {name}. " * 30 for name in names]
    assert in_order("out") == expected(texts)
    out = capsys.readouterr().out
    assert "files: 3, " in out and "skipped: 4 files of another kind, the first 1.pdf" in out
    assert make("texts", "--out", "texts/val", "--val-fraction", "0.4") == 0  # whole documents
    assert ids_in("texts/val", "val") == expected(texts[2:])
    assert make("texts", "--out", "texts/val", "--val-fraction", "0.4") == 0  # not its own source


def test_a_readme_beside_data_is_skipped(capsys):
    Path("data").mkdir()
    Path(write_source("jsonl")).rename("data/a.jsonl")
    Path("data/README.md").write_text("about the data")
    assert make("data", "--out", "out", "--shard-tokens", "500") == 0
    assert in_order("out") == expected(DOCUMENTS)
    assert "skipped: 1 files of another kind, the first README.md" in capsys.readouterr().out


HALVES = ['{"text": "x \\ud83d y"}', '{"text": "x \\ude00\\ud83d"}', '{"text": "\\ud83d\\ude00"}']
COLUMNS = [{"text": None, "meta": 1}] * 50 + [{"text": "2021-03", "meta": "x", "new": []}] * 50
EMPTY = "".join(json.dumps({"text": t}) + "\n\n" for t in ["one", "", None, "two"] * 20)


@pytest.mark.parametrize("name, content, texts, empty", [
    # a half of a surrogate pair is repaired
    ("t.jsonl", "\n".join(HALVES * 9), ["x \ufffd y", "x \ufffd\ufffd", "\U0001f600"] * 9, 0),
    # other columns and their types do not matter
    ("t.jsonl", "\n".join(map(json.dumps, COLUMNS)), ["2021-03"] * 50, 50),
    # a byte order mark is no text
    ("t.txt", "\ufeffTo be" + " or not" * 50, ["To be" + " or not" * 50], 0),
    # documents without text are none, and empty lines
    ("t.jsonl", EMPTY, ["one", "two"] * 20, 40 + 80),
])  # fmt: skip
def test_odd_texts(name, content, texts, empty):
    Path(name).write_text(content)
    assert make(name, "--out", "out", "--shard-tokens", "20") == 0
    assert in_order("out") == expected(texts)
    meta = json.loads(Path("out/meta.json").read_text())
    assert (meta["documents"], meta["empty"]) == (len(texts), empty)


@pytest.mark.parametrize("name", ["a[1].jsonl", "a*.jsonl", "b::c.jsonl", "C.JSONL", "a*.txt"])
def test_names_are_names(name):
    """No pattern, no address, capital letters or not."""
    for other in (name, "ab" + Path(name).suffix):
        Path("odd").mkdir(exist_ok=True)
        line = json.dumps({"text": other}) + "\n"
        Path("odd", other).write_text(line if name.lower().endswith("jsonl") else other)
    assert make("odd", "--out", "out", "--shard-tokens", "3") == 0
    assert sorted(in_order("out")) == sorted(expected([name, "ab" + Path(name).suffix]))


def test_much_white_space_takes_no_time():
    began = time.perf_counter()
    for text in ("a " + " " * 1_500_000 + "b c", "a" + "\xa0" * 1_000_000 + "b",
                 "a" + "\x0b" * 1_000_000 + "b", "word" * 500_000 + " end"):  # fmt: skip
        Path("t.txt").write_text(text)
        Path("t.jsonl").write_text(json.dumps({"text": text}) + "\n")
        counts = []
        for name in ("t.txt", "t.jsonl"):
            batches = read(find_files(name, Path("out")), Position(), "text")
            ids = [shards.tokenize(batch, 0)["train"] for batch in batches]
            counts.append(sum(map(len, ids)))
        assert counts[0] == counts[1] > 3
    assert time.perf_counter() - began < 20


def test_pieces_of_a_text_have_the_tokens_of_the_whole():
    rng, encode = random.Random(0), gpt2_tokenizer().encode_ordinary
    parts = "a Bc 's é 1 ?!".split() + [" ", "  ", "\n", "\n\n", "\r\n", "\t", "\u3000", "\xa0"]
    for piece in (7, 40) * 30:
        text = "".join(rng.choices(parts, k=300))
        Path("t.txt").write_bytes(text.encode())
        batches = list(read(find_files("t.txt", Path("out")), Position(), "text", piece))
        assert "".join(t for batch in batches for t in batch.texts) == text
        assert [i for batch in batches for t in batch.texts for i in encode(t)] == encode(text)
        for n in range(0, len(batches), 9):  # and they are the same after resuming
            again = list(read(find_files("t.txt", Path("out")), batches[n].end, "text", piece))
            assert [b.texts for b in again] == [b.texts for b in batches[n + 1 :]]
    assert len(batches) > 5 and [b.begins for b in batches][:2] == [True, False]


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
def test_reading_resumes_from_any_state(kind):
    source = find_files(write_source(kind), Path("out"))
    batches = list(read(source, Position(), "text", 300))
    assert len(batches) > 5
    assert [b.end.bytes for b in batches] == sorted(b.end.bytes for b in batches)
    assert batches[-1].end.bytes <= sum(source.values())
    for n, batch in enumerate(batches):
        assert list(read(source, batch.end, "text", 300)) == batches[n + 1 :]


def test_a_fraction_of_the_documents_is_for_validation():
    source = write_source("jsonl")
    assert make(source, "--out", "out", "--val-fraction", "0.2") == 0
    val = [d for n, d in enumerate(DOCUMENTS) if (n + 1) % 5 == 0]
    assert ids_in("out", "val") == expected(val)
    assert ids_in("out", "train") == expected([d for d in DOCUMENTS if d not in val])
    tokens = open_tokens("out")
    assert len(tokens.train) + len(tokens.val) == len(expected(DOCUMENTS))


def test_a_short_single_text_can_be_split():
    text = "".join(DOCUMENTS) * 2
    Path("t.txt").write_bytes(text.encode())
    assert make("t.txt", "--out", "out", "--val-fraction", "0.2") == 0
    n = len(expected([text]))
    assert 0.1 * n < len(ids_in("out", "val")) < 0.3 * n
    assert sorted(ids_in("out")) == sorted(expected([text]))


@pytest.mark.parametrize("n, options", [
    (7, ()), (7, ("--val-fraction", "0.1")), (7, ("--val-fraction", "0.00001")),
    (1, ("--val-fraction", "0.5")), (0, ()),
])  # fmt: skip
def test_options_that_leave_a_split_empty_are_explained(n, options, capsys):
    source, tokens = write_source("jsonl", DOCUMENTS[1:][:n]), len(expected(DOCUMENTS[1:][:n]))
    assert make(source, "--out", "out", *options) == 2
    stderr = capsys.readouterr().err
    assert f"the text has {tokens} tokens, too few for both train and val" in stderr
    assert f"(documents: {n})" in stderr
    assert f"give more text, a --shard-tokens below {tokens} or a --val-fraction" in stderr
    assert not list(Path("out").iterdir())
    if n > 1:  # and the advice is good
        assert make(source, "--out", "a", "--shard-tokens", str(tokens - 1)) == 0
        assert make(source, "--out", "b", "--val-fraction", "0.5") == 0
        assert ids_in("b", "val").count(END) == 3


@pytest.mark.parametrize("seed", [1, 2])
def test_interrupted_at_any_moment_it_resumes_to_the_same_bytes(seed, tmp_path):
    """One process imports everything once and forks children. The first one counts the lines of
    code that it runs. The next is stopped by Ctrl-C at one of them, six are killed at others."""
    options = (write_source("jsonl", [f"{text} {n}" for n in range(100) for text in DOCUMENTS]),
               "--shard-tokens", "30000", "--val-fraction", "0.15")  # fmt: skip
    code = f"""
import os, random, signal, sys
sys.path.insert(0, {str(ROOT)!r})
from common.kit.cli import run
from common.shards import __main__ as shards, documents, writer
writer.SECONDS_BETWEEN_SAVES = 0
shards.MAX_IN_FLIGHT, documents.ROWS = 2**14, 40
shards.gpt2_tokenizer()
signal.signal(signal.SIGINT, signal.default_int_handler)
random.seed({seed})

def child(out, moment=10**9, stop=signal.SIGKILL):
    lines = 0
    def trace(frame, event, arg):
        nonlocal lines
        lines += "common/shards" in frame.f_code.co_filename
        if lines == moment:
            lines += 1
            os.kill(os.getpid(), stop)
        return trace
    if pid := os.fork():
        return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    signal.alarm(60)  # seconds, should a fork hang
    sys.settrace(trace)
    try:
        run(shards.main, shards.Options, [*{options!r}, "--out", out])
    except SystemExit as stopped:
        os._exit(stopped.code)
    sys.settrace(None)
    open("lines", "w").write(str(lines))
    os._exit(0)

statuses = [child("whole")]
lines = int(open("lines").read())
statuses.append(child("stopped", lines // 3, signal.SIGINT))
for _ in range(6):
    statuses.append(child("stopped", random.randrange(1, lines // 3)))
print("statuses:", [*statuses, child("stopped")])
"""
    alone = os.environ | {"ARROW_DEFAULT_MEMORY_POOL": "system"}  # pyarrow's own starts threads
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env=alone)
    assert done.returncode == 0 and "Traceback" not in done.stderr, done.stderr
    statuses = json.loads(re.search(r"statuses: (.*)", done.stdout)[1])
    assert statuses == [0, 130, *[-9] * 6, 0]
    assert done.stdout.count("resumed from") >= 2
    assert all_bytes("stopped") == all_bytes("whole")


def test_a_kill_before_the_first_save_can_be_resumed():
    """It leaves the lock, and perhaps a part of progress.json."""
    Path("out").mkdir()
    for name in (".lock", ".progress.json.partial"):
        Path("out", name).write_text("{")
    assert make(write_source("jsonl"), "--shard-tokens", "500", "--out", "out") == 0
    assert in_order("out") == expected(DOCUMENTS)


def test_a_kill_when_a_shard_is_full_loses_nothing(monkeypatch):
    """The shard is on the disk, and progress.json does not know of it."""
    source = write_source("jsonl", DOCUMENTS * 5)
    options = (source, "--shard-tokens", "3000", "--val-fraction", "0.3")
    assert make(*options, "--out", "whole") == 0
    monkeypatch.setattr(writer, "SECONDS_BETWEEN_SAVES", 0)
    monkeypatch.setattr(shards, "MAX_IN_FLIGHT", 2**12)
    count = itertools.count(1)

    def killed(path):
        if next(count) in (2, 3, 5):
            assert make(source, "--out", "killed", "--shard-tokens", "1000") == 2  # other options
            raise KeyboardInterrupt

    monkeypatch.setattr(writer, "sync", killed)
    assert [make(*options, "--out", "killed") for _ in range(4)] == [130, 130, 130, 0]
    assert all_bytes("killed") == all_bytes("whole")


@pytest.fixture
def begun(monkeypatch, capsys):
    """The options of a run that was stopped when it had written everything but meta.json."""

    def stop(self):
        self.save()
        raise KeyboardInterrupt

    options = (write_source("jsonl", DOCUMENTS[:40]), "--shard-tokens", "500", "--out", "out")
    assert make(*options, "--out", "whole") == 0
    with monkeypatch.context() as patch:
        patch.setattr(writer.Shards, "finish", stop)
        assert make(*options) == 130
    capsys.readouterr()
    return options


def test_what_was_written_after_the_progress_is_cut_off(begun):
    assert_no_shard("out", "train_*.npy")
    with Path("out/train_000001.npy").open("ab") as file:
        file.write(b"later" * 999)
    assert make(*begun) == 0
    assert all_bytes("out") == all_bytes("whole")


def test_two_processes_on_one_folder(begun, capsys):
    """The second one ends with one line and changes nothing."""
    before = all_bytes("out")
    code = "import filelock; held = filelock.FileLock('out/.lock').acquire(); print(1); input()"
    command, pipe = [sys.executable, "-u", "-c", code], subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe) as first:
        assert first.stdout.readline() == b"1\n"
        assert make(*begun) == 2
        error = "error: another process writes into out: give another --out\n"
        assert capsys.readouterr().err == error and all_bytes("out") == before
        first.communicate(b"\n")
    assert make(*begun) == 0


@pytest.mark.parametrize("tokens, words", [
    ({"val": 10**9}, "val_000001.npy is missing"), ({"train": 499}, "is shorter"),
])  # fmt: skip
def test_shards_that_were_changed_are_named(tokens, words, begun, capsys):
    progress = json.loads(Path("out/progress.json").read_text())
    progress["tokens"] |= tokens
    Path("out/progress.json").write_text(json.dumps(progress))
    assert make(*begun) == 2
    assert words in capsys.readouterr().err


def test_a_damaged_progress_is_one_line(begun, capsys):
    Path("out/progress.json").write_text("{")
    assert make(*begun) == 2
    error = "error: out/progress.json is damaged: it holds no JSON object\n"
    assert capsys.readouterr().err == error


def test_a_mistake_before_the_first_token_does_not_tie_the_folder(capsys):
    source = write_source("jsonl")
    assert make(source, "--out", "out", "--shard-tokens", "500", "--field", "body") == 2
    assert "no JSON object with the --field body" in capsys.readouterr().err
    assert make(source, "--out", "out", "--shard-tokens", "500") == 0


def test_the_progress_of_something_else_is_not_ours(capsys):
    Path("out").mkdir()
    Path("out/progress.json").write_text('{"foo": 1}')
    Path("out/mine.npy").write_text("mine")
    assert make(write_source("jsonl"), "--out", "out", "--shard-tokens", "500") == 2
    assert "out was begun with another" in capsys.readouterr().err
    assert Path("out/mine.npy").read_text() == "mine"


def test_complete_shards_are_left_alone_and_others_refused(capsys):
    source = write_source("jsonl")
    assert make(source, "--out", "out", "--shard-tokens", "500") == 0
    before = {p.name: p.stat().st_mtime_ns for p in Path("out").iterdir()}
    assert make(source, "--out", "out", "--shard-tokens", "500") == 0
    assert "is complete" in capsys.readouterr().out
    assert make(source, "--out", "out", "--shard-tokens", "600") == 2
    assert "begun with another shard_tokens, 500" in capsys.readouterr().err
    assert {p.name: p.stat().st_mtime_ns for p in Path("out").iterdir()} == before
    Path("mine").mkdir()
    Path("mine/letter.txt").write_text("mine")
    assert make(source, "--out", "mine") == 2
    assert [p.name for p in Path("mine").iterdir()] == ["letter.txt"]


@pytest.mark.parametrize("how, change", [
    ("flipped", lambda data: data[:300] + bytes([data[300] ^ 1]) + data[301:]),
    ("truncated", lambda data: data[:400]),
    ("too large", lambda data: data[:300] + b"\xff\xff" + data[302:]),
    ("missing", None), ("a folder", None),
])  # fmt: skip
def test_verify_finds_what_was_changed(how, change, capsys):
    make(write_source("jsonl"), "--out", "out", "--shard-tokens", "500")
    path = Path("out/train_000002.npy")
    data = path.read_bytes()
    path.unlink()
    if change:
        path.write_bytes(change(data))
    elif how == "a folder":
        path.mkdir()
    assert make("out", "--verify") == 2
    stderr = capsys.readouterr().err
    assert "train_000002.npy" in stderr and stderr.count("error:") == 1


@pytest.fixture
def refused(capsys):
    """refused(words, *options): it must end with one line that holds words, and leave no shard."""

    def refused(words: str, *options: str) -> None:
        assert make(*options, "--out", "out") == 2
        stderr = capsys.readouterr().err
        assert stderr.startswith("error: ") and stderr.count("\n") == 1 and words in stderr
        assert_no_shard("out")
        shutil.rmtree("out", ignore_errors=True)

    return refused


@pytest.mark.parametrize("name, content, words", [
    ("t.txt", b"", "the text has 0 tokens"),
    ("t.txt", b"good\n" * 100 + b"\xff\xfe bad", "t.txt can't be read: 'utf-8' codec"),
    ("t.jsonl", b'{"body": "x"}\n', "is no JSON object with the --field text"),
    ("t.jsonl", b'{"text": "x"}\n{"n": 1}\n', "t.jsonl can't be read: line 2, '{\"n\": 1}"),
    ("t.jsonl", b'{"text": 7}\n', "int where text should be"),
    ("t.jsonl", b'{"text": 0}\n', "int where text should be"),
    ("t.jsonl", b"[1]\n", "line 1, '[1]"),
    ("t.jsonl", b'{"text": "x"}\n{"text": ', "t.jsonl can't be read: line 2, '{\"text\": '"),
    ("t.jsonl", b"[" * 100_000, "t.jsonl can't be read"),
    ("t.jsonl", b'{"text": ' + b"[" * 100_000 + b"]" * 100_000 + b"}", "t.jsonl can't be read"),
    ("t.jsonl", b'{"text": ' + b"[" * 900 + b"]" * 900 + b"}", "list where text should be"),
    ("t.jsonl", b'{"text": 1e400}', "float where text should be"),
    ("t.jsonl", b'{"text": "\xff"}\n', "t.jsonl"),
    ("t.txt.gz", b"no gzip", "t.txt.gz can't be read"),
    ("t.parquet", b"no parquet", "t.parquet can't be read"),
])  # fmt: skip
def test_bad_files_are_one_line(name, content, words, refused):
    Path(name).write_bytes(content)
    refused(words, name)


@pytest.mark.parametrize("kind", ["parquet", "txt.gz", "jsonl.gz", "txt.zst", "parquet.gz"])
def test_truncated_files_are_one_line(kind, refused):
    data = Path(write_source(kind)).read_bytes()
    Path(f"cut.{kind}").write_bytes(data[: len(data) // 3])
    refused(f"cut.{kind} can't be read", f"cut.{kind}")


def test_bad_sources_are_one_line(refused, monkeypatch):
    refused("no meta.json in gone lists shards", "gone", "--verify")
    refused("gone does not exist: give fineweb-edu, openwebtext, a file or a folder", "gone")
    Path("mixed").mkdir()
    refused("mixed has no files", "mixed")
    for name in ("a.txt", "a.jsonl"):
        Path("mixed", name).write_text("{}")
    refused("mixed has json and text files", "mixed")
    parquet = write_source("parquet")
    refused("it has no body: give --field as one of other, text", parquet, "--field", "body")
    monkeypatch.setattr(documents, "MAX_CHARACTERS", 1000)
    Path("t.txt").write_text("x" * 200_000)
    refused("t.txt can't be read: a document has 50,000 characters", "t.txt")
    Path("t.jsonl").write_text(json.dumps({"text": "x" * 2000}) + "\n")
    refused("t.jsonl can't be read: a document has 2,000 characters", "t.jsonl")
    source = write_source("jsonl", ["few words"])
    refused("--val-fraction is 1", source, "--val-fraction", "1")
    refused("--shard-tokens is 0", source, "--shard-tokens", "0")
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "pyarrow", None)  # as if it were not installed
        refused("shards needs pyarrow, which is not installed: pip install pyarrow", source)
    usage = shutil._ntuple_diskusage(10**9, 10**9, 10)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    refused("the shards need about", source)


def test_a_dataset_on_the_hub_is_read_at_its_commit(monkeypatch):
    class Hub:
        def dataset_info(self, dataset, revision):
            return type("Info", (), {"sha": f"{revision}7"})

        def glob(self, pattern, detail):
            assert pattern == "datasets/HuggingFaceFW/fineweb-edu@main7/sample/10BT/*.parquet"
            return {f"datasets/d@main7/{n}": {"size": Path(n).stat().st_size} for n in names}

        def open(self, address, mode):
            assert address.startswith("hf://datasets/d@main7/")
            return open(address.rsplit("/", 1)[1], mode)

    names = [write_source("parquet"), "b.parquet"]
    shutil.copy(*names)
    for name in ("HfApi", "HfFileSystem"):
        monkeypatch.setattr(documents, name, Hub)
    assert make("fineweb-edu", "--out", "out", "--shard-tokens", "500") == 0
    assert in_order("out") == expected(DOCUMENTS * 2)
    made_from = json.loads(Path("out/meta.json").read_text())["made_from"]
    assert made_from["files"] == [f"hf://datasets/d@main7/{name}" for name in sorted(names)]


def test_no_hub_is_one_line(refused, monkeypatch, capsys):
    refused("fineweb-edu can't be read from the Hub", "fineweb-edu")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"):  # a network that leads nowhere
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    assert make("fineweb-edu", "--out", "hub") == 2 and not Path("hub").exists()
    assert "error: fineweb-edu can't be read from the Hub (ConnectError" in capsys.readouterr().err


def test_a_full_disk_leaves_no_shard_and_can_be_resumed(monkeypatch, capsys):
    options = (write_source("jsonl", DOCUMENTS * 20), "--shard-tokens", "30000")
    assert make(*options, "--out", "whole") == 0
    append, count = writer.Shards.append, itertools.count(1)

    def full(self, *batch):
        append(self, *batch)
        if next(count) == 9:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(writer.Shards, "append", full)
    assert make(*options, "--out", "out") == 2
    assert "error: the disk: No space left on device: make room" in capsys.readouterr().err
    assert_no_shard("out")
    assert make(*options, "--out", "out") == 0
    assert all_bytes("out") == all_bytes("whole")


def test_the_command_says_its_own_name(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["common.shards", "a", "--wide"])
    with pytest.warns(RuntimeWarning), pytest.raises(SystemExit):  # it is imported here
        runpy.run_module("common.shards", run_name="__main__", alter_sys=True)
    assert "called --wide (python -m common.shards --help lists" in capsys.readouterr().err


# Reading


def header(count: int) -> bytes:
    """llm.c's: 256 int32."""
    numbers = np.zeros(256, "<i4")
    numbers[:3] = 20240520, 1, count
    return numbers.tobytes()


def test_other_peoples_files_are_read_as_they_are():
    rng = np.random.default_rng(0)
    parts = [rng.integers(0, 50257, n, dtype=np.uint16) for n in (1000, 3, 700)]
    val = rng.integers(0, 50257, 90, dtype=np.uint16)
    whole = np.concatenate(parts)
    for folder in ("nanogpt", "build", "llmc"):
        Path(folder).mkdir()
    Path("nanogpt/train.bin").write_bytes(whole.tobytes())
    Path("nanogpt/val.bin").write_bytes(val.tobytes())
    for n, ids in enumerate([val, *parts]):
        name = f"fineweb_{'train' if n else 'val'}_{n:06d}"
        np.save(f"build/edu{name}.npy", ids)
        Path(f"llmc/{name}.bin").write_bytes(header(len(ids)) + ids.tobytes())
    for folder in ("nanogpt", "build", "llmc"):
        tokens = open_tokens(folder)
        assert len(tokens.train) == 1703 and len(tokens.val) == 90
        for start, stop in ((0, 1703), (998, 1005), (1000, 1003), (5, 5), (1600, 9999), (0, 1)):
            assert np.array_equal(tokens.train[start:stop], whole[start:stop]), folder
        assert np.array_equal(tokens.val[:], val)
        assert all(isinstance(ids, np.memmap) for _, ids in tokens.train.parts)


# Two documents, as datatrove 0.10.1 wrote them, and where each ends.
DATATROVE = "d20933010b00890197011c01330150c4380a7897dc00464cfe00a9617900c60050c4"
DATATROVE_INDEX = np.array([8, 17], "<u8").tobytes()


@pytest.mark.parametrize("dtype", ["<u2", "<u4"])
def test_datatroves_files_are_read_as_they_are(dtype):
    text = "To be, or not to be<|endoftext|>naïve 你好\n<|endoftext|>"
    expected = gpt2_tokenizer().encode(text, allowed_special="all")
    Path("s").mkdir()
    ids = np.frombuffer(bytes.fromhex(DATATROVE), "<u2").astype(dtype)
    for n in range(2):
        Path(f"s/{n:05d}_00000_shuffled.ds").write_bytes(ids.tobytes())
        Path(f"s/{n:05d}_00000_shuffled.ds.index").write_bytes(DATATROVE_INDEX)
        Path(f"s/{n:05d}_00000_shuffled.ds.metadata").write_text("gpt2|2\n17\n17 T")
    tokens = open_tokens("s")
    assert [*tokens.train[:], *tokens.val[:]] == expected * 2


@pytest.mark.parametrize("dtype", ["uint16", "int32", "int64"])
def test_without_validation_files_the_end_is_for_validation(dtype):
    ids = np.arange(1000, dtype=dtype)
    np.save("two.npy", ids)
    tokens = open_tokens("two.npy")
    assert np.array_equal(tokens.train[:], ids[:900])
    assert np.array_equal(tokens.val[:], ids[900:])
    assert all(isinstance(part, np.memmap) for _, part in tokens.train.parts)
    Path("a.val.bin").write_bytes(ids.astype(np.uint16).tobytes())  # one file, by any name
    assert np.array_equal(open_tokens("a.val.bin").train[:], tokens.train[:])
    assert np.array_equal(open_tokens("a.val.bin").val[:], tokens.val[:])


def test_shards_are_one_stream_of_windows():
    """Every token of three shards is predicted once an epoch, but for the 9 of the last window."""
    ids = np.arange(1, 1001, dtype=np.uint16)
    Path("s").mkdir()
    for n, part in enumerate(np.split(ids, [333, 500])):
        np.save(f"s/train_{n}.npy", part)
    np.save("s/val.npy", ids[:20])
    batches = Batches(open_tokens("s").train, 3, 10)
    assert batches.n_windows == 99
    seen = Counter(int(i) for _ in range(33) for i in next(batches)[1].flatten())
    assert seen == dict.fromkeys(range(2, 992), 1)
    assert (batches.epoch, batches.position) == (1, 0)


IDS = np.arange(1000, dtype=np.uint16)
BEYOND = IDS.astype(np.int64)


@pytest.mark.parametrize("name, content, words", [
    ("x.npy", np.where(BEYOND == 7, 50257, BEYOND), "x.npy has ids from 0 to 50257"),
    ("x.npy", BEYOND - (BEYOND == 999) * 1998, "x.npy has ids from -999"),
    ("x.bin", np.where(BEYOND == 7, 50257, BEYOND).astype("<u2").tobytes(), "ids from 0 to 50257"),
    ("x.npy", np.zeros((3, 3)), "holds float64 of shape (3, 3): give integers of shape (N,)"),
    ("x.npy", b"PK", "not a file of token ids"),
    ("x.npy", b"\x93NUMPY", "not a file of token ids"),
    ("x.npy", "not for us", "PermissionError"),
    ("x.npy", "a folder", "IsADirectoryError"),
    ("x.npy", "gone", "FileNotFoundError"),
    ("x.npy", "x.npy", "Too many levels of symbolic links"),
    ("x.bin", "gone", "FileNotFoundError"),
    ("x.bin", IDS.tobytes()[:-1], "not a file of token ids"),
    ("x.bin", b"", "empty file"),
    ("x.bin", header(1000) + IDS.tobytes()[:-2], "do not fit version 1 and 1,000 ids"),
    ("x.bin", header(1000)[:4], "do not fit version 0 and 0 ids"),
    ("x.bin", header(999) + IDS.tobytes(), "3,024 bytes"),
    ("x.bin", header(2**31 - 1), "2,147,483,647 ids"),
    ("x.ds", IDS.tobytes(), "FileNotFoundError"),  # its index
])  # fmt: skip
def test_a_bad_token_file_is_one_line(name, content, words):
    Path("s").mkdir()
    path = Path("s", name)
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif isinstance(content, np.ndarray):
        np.save(path, content)
    elif content == "a folder":
        path.mkdir()
    elif content == "not for us":
        path.touch(0)
        if os.geteuid() == 0:
            pytest.skip("root may read every file")
    else:
        path.symlink_to(content)
    with pytest.raises(UserError, match=re.escape(words)) as error:
        tokens = open_tokens("s")
        for batch in (tokens.train[:], tokens.val[:]):
            assert batch is None, "ids that are not GPT-2's were read"
    assert str(path) in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize("names, words", [
    (["train.npy", "val.bin"], "has .bin and .npy files"),
    (["a.ds", "a.ds.index: 12345678"], "2,000 bytes, and its index ends at"),
    (["train.npy", "meta.pkl"], "meta.pkl"),
    (["train.npy", 'meta.json: {"made_from": {}, "shards": [{"name": "val.npy"}]}'],
     "s lacks val.npy, which its meta.json names"),
    (["train.npy", "progress.json: {}"], "is not complete: the command that made it resumes"),
    (["val_0.npy"], "s has no ids to train on"),
    (["train.npy", "short_val.npy"], "has 1 ids for validation"),
])  # fmt: skip
def test_a_bad_folder_of_token_files_is_one_line(names, words):
    Path("s").mkdir()
    for name, _, content in (name.partition(": ") for name in names):
        if name.endswith(".npy"):
            np.save(f"s/{name}", IDS[:1] if "short" in name else IDS)
        else:
            Path("s", name).write_bytes(content.encode() or IDS.tobytes())
    with pytest.raises(UserError, match=re.escape(words)):
        open_tokens("s")


def test_a_name_with_val_in_a_word_is_not_for_validation():
    Path("s").mkdir()
    for name in ("train_valley", "retrieval", "val_1", "b_val", "c.val"):
        np.save(f"s/{name}.npy", IDS)
    tokens = open_tokens("s")
    assert (len(tokens.train), len(tokens.val)) == (2000, 3000)
    assert [path.stem for path, _ in tokens.train.parts] == ["retrieval", "train_valley"]


@pytest.mark.usefixtures("quick_peak")
def test_stage_7_trains_on_shards(call, text_file):
    text = Path(text_file).read_text()
    source = write_source("jsonl", [text[i : i + 400] for i in range(0, len(text), 400)])
    assert make(source, "--out", "mine", "--shard-tokens", "700") == 0
    small = ("--model", "gpt-nano", "--batch-size", "2", "--block-size", "32", "--lr", "1e-2",
             "--total-batch-tokens", "128", "--compile", "no", "--data", "mine",
             "--vocab-size", "50257")  # fmt: skip
    code, stdout, stderr = call(7, *small, "--steps", "20", "--eval-tokens", "300")
    assert code == 0, stderr
    assert "700 for validation" in stdout and "npy files, mapped" in stdout
    losses = [float(x) for x in re.findall(r"validation.*? loss ([\d.]+)", stdout)]
    assert losses[-1] < losses[0] - 1
