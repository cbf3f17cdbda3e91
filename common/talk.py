"""A model to talk to: it continues what you type. Text is streamed as it is generated, in whole
characters, up to a stop text."""

import codecs
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import islice

import torch

from common.decode import Decoder, decode
from common.tokenizer import VOCAB_SIZE, gpt2_tokenizer


def text_of(
    ids: Iterable[int], stop: str | None = None, vocab_size: int = VOCAB_SIZE
) -> Iterator[str]:
    """Yield the text of the token ids, piece by piece, up to <|endoftext|> or the text `stop`.

    A character of several bytes may be spread over tokens: it is held back until it is complete.
    So is text that may be the beginning of `stop`.
    """
    tokenizer = gpt2_tokenizer(vocab_size)
    characters = codecs.getincrementaldecoder("utf-8")(errors="replace")
    waiting = ""
    for i in ids:
        if i == tokenizer.eot_token:
            break
        waiting += characters.decode(tokenizer.decode_single_token_bytes(i))
        if stop and stop in waiting:
            yield waiting[: waiting.index(stop)]
            return
        n = beginning_of(stop, waiting) if stop else 0
        yield waiting[: len(waiting) - n]
        waiting = waiting[len(waiting) - n :]
    yield waiting + characters.decode(b"", final=True)


def beginning_of(stop: str, text: str) -> int:
    """How many characters at the end of text are the beginning of stop."""
    longest = min(len(stop) - 1, len(text))
    return next((n for n in range(longest, 0, -1) if text.endswith(stop[:n])), 0)


@dataclass
class Voice:
    """Continues texts with a decoder, and with its compiled step if there is one."""

    decoder: Decoder
    step: Callable | None
    max_new_tokens: int
    stop: str | None = None

    def continue_text(self, text: str, seed: int) -> Iterator[str]:
        """Yield the continuation of text, piece by piece."""
        device = next(self.decoder.parameters()).device
        vocab_size = self.decoder.model.config.vocab_size
        prompt = gpt2_tokenizer(vocab_size).encode_ordinary(text)
        ids = torch.tensor([prompt], device=device)
        new_ids = islice(decode(self.decoder, ids, seed, self.step), self.max_new_tokens)
        yield from text_of((ids.item() for ids in new_ids), self.stop, vocab_size)


def converse(voice: Voice, seed: int, text: str) -> None:
    """Read a line, append it to text, let the model continue that, and so on until Ctrl-D."""
    print("type a line; Ctrl-C ends an answer, Ctrl-D the session")
    print(text, end="")
    while True:
        try:
            text += input("> ")
        except EOFError:
            print()
            return
        except KeyboardInterrupt:  # drops the line, as in a shell
            print()
            continue
        try:
            for piece in voice.continue_text(text, seed) if text else ():
                print(piece, end="", flush=True)
                text += piece
        except KeyboardInterrupt:
            pass  # keep the text so far
        print()
        text, seed = f"{text}\n", seed + 1
