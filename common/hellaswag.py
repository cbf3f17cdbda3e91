"""HellaSwag (Zellers et al., 2019): which of four endings goes on from a context?

Two numbers go by the name of normalised accuracy. The lm-eval harness divides an ending's
log-probability by its characters, and rewords the questions (0.3114 for GPT-2 124M); build-nanogpt
divides by its tokens, and asks them as they stand (0.2955). Both are here, with their names.
"""

import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import requests
import torch
from torch.nn import functional as F
from tqdm import tqdm

from common.cli import UserError
from common.download import DATA_DIR, check, download, reason
from common.evals import in_turns
from common.tokenizer import VOCAB_SIZE, gpt2_tokenizer

URL = "https://raw.githubusercontent.com/rowanz/hellaswag/master/data/hellaswag_val.jsonl"
BYTES = 12_246_618  # 10,042 questions
SHA256 = "0aa3b88843990f3f10a97b9575c94d7b71fb2205240ba04ae4884d9e9c992588"


def read_questions(file: str | None, most: int | None = None) -> list[dict]:
    """HellaSwag's validation questions, or the first `most`: from a file in its format, else
    downloaded once. Raises UserError for neither, and for a file in another format."""
    path = DATA_DIR / "hellaswag_val.jsonl"
    if file is None and not path.exists():
        try:
            download(URL, path, BYTES, SHA256, "--hellaswag-file")
        except requests.RequestException as error:
            raise UserError(f"HellaSwag can't be downloaded ({reason(error)}): give a copy of "
                            "hellaswag_val.jsonl as --hellaswag-file") from None  # fmt: skip
    path = path if file is None else Path(file).expanduser()
    try:
        data = check(path, SHA256) if file is None else path.read_bytes()
        questions = [json.loads(line) for line in data.decode().split("\n") if line.strip()]
        for number, question in enumerate(questions, 1):
            texts = [question[name] for name in ("activity_label", "ctx_a", "ctx_b", "ctx")]
            texts += question["endings"]
            question["label"] = int(question["label"])  # some copies have it as a string
            if question["label"] not in range(4) or list(map(type, texts)) != [str] * 8:
                raise ValueError(f"question {number} has no label 0 to 3, or not four endings")
    except OSError as error:
        raise UserError(f"--hellaswag-file {path} can't be read: {error.strerror}") from None
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path} is not in HellaSwag's format: {error!r:.100}") from None
    if not questions:
        raise UserError(f"{path} has no questions: give hellaswag_val.jsonl")
    return questions[:most]


def as_lm_eval(question: dict) -> tuple[str, list[str]]:
    """Context and endings as EleutherAI's lm-evaluation-harness asks them: with a title, without
    WikiHow's marks such as [step]."""
    context = f"{question['activity_label']}: {question['ctx_a']} {question['ctx_b'].capitalize()}"
    texts = [text.strip().replace(" [title]", ". ") for text in (context, *question["endings"])]
    context, *endings = (re.sub(r"\[.*?\]", "", text).replace("  ", " ") for text in texts)
    return context, endings


def as_build_nanogpt(question: dict) -> tuple[str, list[str]]:
    """Context and endings as build-nanogpt, and llm.c after it, ask them: as they stand."""
    return question["ctx"], question["endings"]


@dataclass(frozen=True)
class HellaSwag:
    """Shares of the questions whose right ending has the highest log-probability: as it is, divided
    by its characters, divided by its tokens."""

    questions: int
    accuracy: float
    per_character: float
    per_token: float


def hellaswag(
    model,
    questions: list[dict],
    wording: Callable,
    batch_size: int = 4,
    rank: int = 0,
    world_size: int = 1,
    sum_over_ranks: Callable[[float], float] = float,
    progress: bool = False,
) -> HellaSwag:
    """Ask model the questions, batch_size at a time, four rows each. Longer texts than it can read
    lose their beginning."""
    device, T = next(model.parameters()).device, model.config.block_size
    encode = gpt2_tokenizer().encode_ordinary

    def rows(question) -> list[tuple[list[int], int, int]]:
        """For each ending: ids of context and ending, how many are the ending's, its characters."""
        context, endings = wording(question)
        n_context = len(encode(context.rstrip()))  # a space belongs to the word after it
        found = [(encode(f"{context} {ending}"), len(ending)) for ending in endings]
        return [(ids[-T - 1 :], len(ids) - n_context, n_chars) for ids, n_chars in found]

    asked = sorted(((rows(q), q["label"]) for q in questions), key=lambda r: len(r[0][0][0]))
    batches = [asked[i : i + batch_size] for i in range(0, len(asked), batch_size)]
    bar = tqdm(total=len(asked), unit=" questions", disable=not progress, leave=False)

    def right(batch) -> list[int]:
        """How many were right by each of the three measures."""
        flat = [row for four, _ in batch for row in four]
        longest = max(len(ids) for ids, _, _ in flat)
        idx = torch.tensor([ids + [0] * (longest - len(ids)) for ids, _, _ in flat])
        ends = torch.tensor([[len(ids), n] for ids, n, _ in flat])
        place = torch.arange(1, longest)
        inside = (place >= ends[:, :1] - ends[:, 1:]) & (place < ends[:, :1])  # (4 · B, T - 1)
        logits = model(idx[:, :-1].to(device))[0][inside.to(device)][:, :VOCAB_SIZE].float()
        losses = F.cross_entropy(logits, idx[:, 1:][inside].to(device), reduction="none").cpu()
        sums = torch.zeros(inside.shape).masked_scatter(inside, -losses).sum(1)
        n_chars = torch.tensor([n for _, _, n in flat])
        labels = torch.tensor([label for _, label in batch])
        bar.update(len(batch) * world_size)
        return [
            (scores.view(-1, 4).argmax(1) == labels).sum().item()
            for scores in (sums, sums / n_chars, sums / ends[:, 1])
        ]

    counts = in_turns(model, batches, right, rank, world_size)
    bar.close()
    totals = [sum_over_ranks(sum(count[k] for count in counts)) for k in range(3)]
    return HellaSwag(len(asked), *(total / len(asked) for total in totals))


def ask_both_ways(model, questions: list[dict], **how) -> tuple[float, float]:
    """Print how often model is right, in both wordings; how: the arguments of hellaswag. Returns
    the two that people quote: per character in lm-eval's, per token in build-nanogpt's."""
    print(f"HellaSwag, {len(questions):,} questions")
    a, b = (hellaswag(model, questions, w, **how) for w in (as_lm_eval, as_build_nanogpt))
    print(f"  as lm-eval asks:       accuracy {a.accuracy:.4f}, by character {a.per_character:.4f}")
    print(f"  as build-nanogpt asks: accuracy {b.accuracy:.4f}, by token     {b.per_token:.4f}")
    return a.per_character, b.per_token
