"""HellaSwag (Zellers et al., 2019): which of four endings continues a context?

Two numbers are called normalized accuracy. The lm-eval harness divides an ending's log-probability
by its number of characters and rewords the questions (0.3114 for GPT-2 124M). build-nanogpt divides
by the number of tokens and leaves the questions as they are (0.2955). Both are computed here.
"""

import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import requests
import torch
from torch.nn import functional as F
from torch.nn.utils.rnn import pad_sequence
from tqdm import tqdm

from common.kit.cli import UserError
from common.kit.download import downloaded
from common.model import GPTConfig
from common.tokenizer import VOCAB_SIZE, gpt2_tokenizer

URL = "https://raw.githubusercontent.com/rowanz/hellaswag/master/data/hellaswag_val.jsonl"
SHA256 = "0aa3b88843990f3f10a97b9575c94d7b71fb2205240ba04ae4884d9e9c992588"  # 10,042 questions


def read_questions(file: str | None, limit: int | None = None) -> list[dict]:
    """HellaSwag's validation questions, or the first `limit`, from a file or else downloaded once.
    Raises UserError if the file can't be read or the download fails, and for another format."""
    name = "hellaswag_val.jsonl"
    path, hint = Path(file or name).expanduser(), f"give a copy of {name} as --hellaswag-file"
    try:
        data = downloaded(URL, name, SHA256, hint) if file is None else path.read_bytes()
        questions = [json.loads(line) for line in data.decode().split("\n") if line.strip()]
        for number, question in enumerate(questions, 1):
            texts = [question[name] for name in ("activity_label", "ctx_a", "ctx_b", "ctx")]
            texts = texts + question["endings"]
            question["label"] = int(question["label"])  # some copies have it as a string
            if question["label"] not in range(4) or [type(text) for text in texts] != [str] * 8:
                raise ValueError(f"question {number} has no label 0 to 3, or not four endings")
    except requests.RequestException as error:
        raise UserError(f"HellaSwag can't be downloaded ({type(error).__name__}): {hint}") from None
    except OSError as error:
        raise UserError(f"{error.filename}: {error.strerror}; {hint}") from None
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path} is not in HellaSwag's format: {error!r:.100}") from None
    if not questions:
        raise UserError(f"{path} has no questions: give hellaswag_val.jsonl")
    return questions[:limit]


def as_lm_eval(question: dict) -> tuple[str, list[str]]:
    """Context and endings as EleutherAI's lm-evaluation-harness asks them: with a title, without
    WikiHow's marks such as [step]."""
    context = f"{question['activity_label']}: {question['ctx_a']} {question['ctx_b'].capitalize()}"
    texts = [text.strip().replace(" [title]", ". ") for text in (context, *question["endings"])]
    context, *endings = (re.sub(r"\[.*?\]", "", text).replace("  ", " ") for text in texts)
    return context, endings


def as_build_nanogpt(question: dict) -> tuple[str, list[str]]:
    """Context and endings as build-nanogpt and llm.c ask them: unchanged."""
    return question["ctx"], question["endings"]


WORDINGS = (as_lm_eval, as_build_nanogpt)


@dataclass(frozen=True)
class HellaSwag:
    """Accuracy when endings are ranked by their total log-probability, by their log-probability
    per character, and per token."""

    questions: int
    accuracy: float
    per_character: float
    per_token: float


def hellaswag(model, questions: list[dict], wording: Callable, batch_size: int = 4) -> HellaSwag:
    """Ask model, which is in evaluation mode, the questions, batch_size at a time. Each is four
    rows, one for each ending."""
    batches = question_batches(questions, wording, model.config, batch_size)
    counts = [count_right(model, batch) for batch in tqdm(batches, leave=False, disable=None)]
    return score(counts, len(questions))


class Row(NamedTuple):
    """Context and ending as ids, and how many ids and characters the ending has."""

    ids: list[int]
    n_ending: int
    n_characters: int


def question_batches(
    questions, wording: Callable, config: GPTConfig, batch_size: int
) -> list[list]:
    """Batches of (four Rows, label), shortest first. Texts longer than the model's block size lose
    their start."""
    encode = gpt2_tokenizer(config.vocab_size).encode_ordinary
    asked = []
    for question in questions:
        context, endings = wording(question)
        n_context = len(encode(context.rstrip()))  # a space belongs to the word after it
        rows = []
        for ending in endings:
            ids = encode(f"{context} {ending}")
            rows.append(Row(ids[-config.block_size - 1 :], len(ids) - n_context, len(ending)))
        asked.append((rows, question["label"]))
    asked.sort(key=lambda rows_label: len(rows_label[0][0].ids))
    return [asked[i : i + batch_size] for i in range(0, len(asked), batch_size)]


@torch.no_grad()
def count_right(model, batch: list) -> list[int]:
    """How many questions of a batch the model gets right, by each of the three measures."""
    device = next(model.parameters()).device
    ids, n_ending, n_characters = zip(*(row for four, _ in batch for row in four), strict=True)
    idx = pad_sequence(list(map(torch.tensor, ids)), batch_first=True)  # no token sees the padding
    length = torch.tensor([[len(row)] for row in ids])
    n_ending, n_characters = torch.tensor(n_ending), torch.tensor(n_characters)
    labels = torch.tensor([label for _, label in batch])
    position = torch.arange(1, idx.size(1))
    in_ending = (position >= length - n_ending[:, None]) & (position < length)  # (4 · B, T - 1)
    logits = model(idx[:, :-1].to(device))[0][in_ending.to(device)][:, :VOCAB_SIZE].float()
    losses = F.cross_entropy(logits, idx[:, 1:][in_ending].to(device), reduction="none").cpu()
    logprob = torch.zeros(in_ending.shape).masked_scatter(in_ending, -losses).sum(1)
    scores = (logprob, logprob / n_characters, logprob / n_ending)
    return [(s.view(-1, 4).argmax(1) == labels).sum().item() for s in scores]


def score(counts: list[list[int]], n_questions: int) -> HellaSwag:
    """The accuracies, from the counts of all batches."""
    shares = [sum(right) / n_questions for right in zip(*counts, strict=True)]
    return HellaSwag(n_questions, *shares)


def print_scores(lm_eval: HellaSwag, build_nanogpt: HellaSwag) -> tuple[float, float]:
    """Print the accuracies in both wordings. Returns the two that people quote."""
    a, b = lm_eval, build_nanogpt
    print(f"HellaSwag, {a.questions:,} questions")
    print(f"  as lm-eval asks:       accuracy {a.accuracy:.4f}, by character {a.per_character:.4f}")
    print(f"  as build-nanogpt asks: accuracy {b.accuracy:.4f}, by token     {b.per_token:.4f}")
    return a.per_character, b.per_token
