"""HellaSwag: the arithmetic by hand, the log-probabilities by Hugging Face's model."""

import hashlib
import json
import re
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel

from common import hellaswag
from common.evals import evaluate
from common.hellaswag import as_build_nanogpt, as_lm_eval, read_questions
from common.kit import download
from common.kit.cli import UserError
from common.model import GPTConfig
from common.pretrained import convert
from common.run import evals
from common.run.ranks import Ranks
from common.tokenizer import gpt2_tokenizer


def question(label=1, endings=("one way.", "another, longer way.", "no way", "any way at all")):
    return {
        "ind": 1, "activity_label": "Sailing", "ctx_a": "A man is at sea.", "ctx_b": "the boat",
        "ctx": "A man is at sea. the boat", "endings": list(endings), "label": label,
    }  # fmt: skip


WIKI = {
    "activity_label": "Home and Garden", "ctx_b": "", "label": 2,
    "ctx_a": "[header] How to dry paint [title] Wait. [step] Sit down.",
    "ctx": "[header] How to dry paint [title] Wait. [step] Sit down.",
    "endings": ["[substeps] Look at it.", "Drink [title] a tea.", "Go  away.", "Sleep. [step]"],
}  # fmt: skip


def test_the_two_wordings():
    assert as_lm_eval(question())[0] == "Sailing: A man is at sea. The boat"
    assert as_build_nanogpt(question()) == ("A man is at sea. the boat", question()["endings"])
    context, endings = as_lm_eval(WIKI)
    assert context == "Home and Garden: How to dry paint. Wait. Sit down."
    assert endings == [" Look at it.", "Drink. a tea.", "Go away.", "Sleep. "]
    assert as_build_nanogpt(WIKI) == (WIKI["ctx"], WIKI["endings"])


class Certain(torch.nn.Module):
    """Gives each token of a text a log-probability of its own: more nats the larger its id."""

    config = GPTConfig(1, 1, 1, block_size=64)

    def __init__(self, costs: dict[int, float]):
        super().__init__()
        self.costs, self.place = costs, torch.nn.Parameter(torch.zeros(1))

    def forward(self, idx):
        p = torch.full((50257,), 1e-9)
        for token, cost in self.costs.items():
            p[token] = torch.tensor(-cost).exp()
        p[0] = 1 - p[1:].sum()
        return p.log().expand(*idx.shape, -1), None


def test_the_three_measures_by_hand():
    """Endings that cost 3, 4, 1.8 a token, and 7.6 nats: by the sum the first is likeliest, by its
    characters (2, 3, 4, 20) the last, by its tokens the third."""
    encode = gpt2_tokenizer().encode_ordinary
    endings = ["ab", "cd!", "e; f", "internationally, yes"]
    ids = [encode(f" {ending}") for ending in endings]
    counts = [len(row) for row in ids]
    nats = [3.0, 4.0, 1.8 * counts[2], 7.6]
    costs = {}
    for row, total in zip(ids, nats, strict=True):
        costs |= dict.fromkeys(row, total / len(row))
    assert len(costs) == sum(counts)  # no token in two endings
    by_character = [n / len(e) for n, e in zip(nats, endings, strict=True)]
    by_token = [n / c for n, c in zip(nats, counts, strict=True)]
    best = [min(range(4), key=scores.__getitem__) for scores in (nats, by_character, by_token)]
    assert len(set(best)) == 3  # the three measures disagree
    questions = [question(label, endings) for label in (best[0], best[1], best[1], best[2])]
    found = hellaswag.hellaswag(Certain(costs), questions, as_build_nanogpt, batch_size=3)
    assert found.questions == 4
    assert (found.accuracy, found.per_character, found.per_token) == (0.25, 0.5, 0.25)


def reference_model():
    torch.manual_seed(0)
    config = GPT2Config(n_layer=2, n_head=2, n_embd=32, n_positions=64, initializer_range=0.3)
    return GPT2LMHeadModel(config).eval()


@pytest.mark.parametrize("wording", [as_lm_eval, as_build_nanogpt])
@pytest.mark.parametrize("batch_size", [1, 3, 50])
def test_the_choices_are_those_of_hugging_faces_logits(wording, batch_size):
    """Each ending alone in a row, without padding, and both models the same."""
    reference, encode = reference_model(), gpt2_tokenizer().encode_ordinary
    words = "the boat a way home rain is sings upon quietly tomorrow".split()
    draw = torch.Generator().manual_seed(1)
    questions = []
    for n in range(12):
        ends = [" ".join(words[i] for i in torch.randint(11, (k + 2,), generator=draw))
                for k in range(4)]  # fmt: skip
        questions.append(question(n % 4, ends) | {"ctx_a": "So it is. " * (n % 3 + 1)})
    questions.append(question(3) | {"ctx_a": "far " * 90, "ctx": "far " * 90 + "away"})  # too long
    right = [0, 0, 0]
    for q in questions:
        context, endings = wording(q)
        scores = []
        for ending in endings:
            n_context = len(encode(context.rstrip()))
            ids = encode(context + " " + ending)
            n = len(ids) - n_context
            ids = torch.tensor([ids[-65:]])
            with torch.no_grad():
                logp = reference(ids[:, :-1]).logits.log_softmax(-1)
            total = logp.gather(-1, ids[:, 1:, None])[0, -n:].sum().item()
            scores.append((total, total / len(ending), total / n))
        for k, by in enumerate(zip(*scores, strict=True)):
            right[k] += by.index(max(by)) == q["label"]
    found = hellaswag.hellaswag(convert(reference), questions, wording, batch_size)
    assert [found.accuracy, found.per_character, found.per_token] == [n / 13 for n in right]


@pytest.mark.parametrize("world_size", [2, 3, 20])
def test_ranks_share_the_questions_and_the_text(world_size):
    """As many calls of the model on each rank, as a sharded model requires, and the same result."""
    model = convert(reference_model())
    questions = [question(n % 4, (f"{n} a", f"b {n} c", f"d{n}", f"e f {n} g")) for n in range(11)]
    ids = torch.randint(50257, (300,), generator=torch.Generator().manual_seed(0))
    calls = []
    model.register_forward_hook(lambda *_: calls.append(1))

    def all_together(work):
        """The result of work(ranks) on the last rank, which hears what the others have."""
        heard, shares = [], []
        for rank in range(world_size):
            ranks = Ranks(torch.device("cpu"), rank, world_size)
            object.__setattr__(ranks, "gather", lambda value: heard.append(value) or heard)
            calls.clear()
            result = work(ranks)
            shares.append(len(calls))
        assert len(set(shares)) == 1
        return result

    alone = hellaswag.hellaswag(model, questions, as_lm_eval, 2)
    asked = lambda ranks: evals.hellaswag_on_ranks(model, questions, as_lm_eval, 2, ranks)  # noqa: E731
    assert all_together(asked) == alone
    read = lambda ranks: evals.evaluate_on_ranks(model, ids, 16, 2, ranks)  # noqa: E731
    assert all_together(read) == evaluate(model, ids, 16, 2)


def test_questions_are_asked_in_the_models_own_vocabulary():
    config = GPTConfig(1, 1, 8, 64, 384)
    (batch,) = hellaswag.question_batches([question()], as_lm_eval, config, 4)
    ids = [row.ids for row in batch[0][0]]
    assert max(map(max, ids)) < 383
    texts = [f"Sailing: A man is at sea. The boat {ending}" for ending in question()["endings"]]
    assert [gpt2_tokenizer(384).decode(row) for row in ids] == texts


def test_the_file_is_downloaded_once_and_checked(monkeypatch, tmp_path):
    body = (json.dumps(question()) + "\n").encode() * 5
    asked = []

    def get(url, timeout):
        asked.append(url)
        return SimpleNamespace(content=body, raise_for_status=lambda: None)

    monkeypatch.setattr(download, "DATA_DIR", tmp_path / "data")
    monkeypatch.setattr(download.requests, "get", get)
    with pytest.raises(UserError, match="sha256"):
        read_questions(None)  # what came is not HellaSwag
    assert not (tmp_path / "data").exists()
    monkeypatch.setattr(hellaswag, "SHA256", hashlib.sha256(body).hexdigest())
    assert len(read_questions(None)) == 5 and len(read_questions(None, 3)) == 3
    assert asked == [hellaswag.URL] * 2


@pytest.mark.usefixtures("quick_peak")
def test_stages_1_and_7_ask(call, text_file):
    reference_model().save_pretrained("model")
    lines = [json.dumps(question(n % 4)) for n in range(6)] + [json.dumps(WIKI)]
    Path("q.jsonl").write_text("\n".join(lines) + "\n")
    ask = ("--data", str(text_file), "--hellaswag-file", "q.jsonl")
    code, stdout, _ = call(1, *ask, "--model", "model", "--hellaswag", "--samples", "1",
                           "--max-new-tokens", "1", "--stride", "32")  # fmt: skip
    assert code == 0 and "HellaSwag, 7 questions" in stdout and "stride 32" in stdout
    assert re.search(r"as lm-eval asks: +accuracy 0.\d{4}, by character 0.\d{4}", stdout)
    assert re.search(r"as build-nanogpt asks: accuracy 0.\d{4}, by token +0.\d{4}", stdout)
    small = ("--model", "gpt-nano", "--batch-size", "2", "--block-size", "32", "--compile", "no",
             "--total-batch-tokens", "64", "--steps", "2", "--out", "run")  # fmt: skip
    code, stdout, _ = call(7, *small, *ask, "--eval-hellaswag", "--hellaswag-limit", "5")
    assert code == 0 and stdout.count("HellaSwag, 5 questions") == 2
    header, first, *_ = Path("run/metrics.csv").read_text().splitlines()
    values = dict(zip(header.split(","), first.split(","), strict=True))
    for name in ("hellaswag_by_character", "hellaswag_by_token"):
        assert float(values[name]) in [n / 5 for n in range(6)]


def test_what_copies_of_the_file_do():
    """Labels as strings, and a line separator within a text."""
    odd = question() | {"label": "3", "ctx": "a\u2028b"}
    Path("q.jsonl").write_text(json.dumps(odd, ensure_ascii=False) + "\n")
    (found,) = read_questions("q.jsonl")
    assert found["label"] == 3 and found["ctx"] == "a\u2028b"


def test_bad_questions_are_one_line(refused, text_file):
    options = ("--data", str(text_file), "--hellaswag")
    refused("HellaSwag can't be downloaded", 1, *options)
    refused("gone: No such file", 1, *options, "--hellaswag-file", "gone")
    for text in (
        "{}",
        "no json",
        json.dumps(question() | {"label": 4}),
        "[1]",
        "",
        json.dumps(question(endings=["a", "b"])),
        json.dumps(question() | {"ctx": 1}),
    ):
        Path("q.jsonl").write_text(text)
        refused("q.jsonl", 1, *options, "--hellaswag-file", "q.jsonl")
    Path("q.jsonl").write_bytes(b"\xff\xfe")
    refused("q.jsonl", 1, *options, "--hellaswag-file", "q.jsonl")
    refused("--hellaswag-limit is 0", 1, *options, "--hellaswag-limit", "0")
