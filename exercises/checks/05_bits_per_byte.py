"""Three windows and a text of 16 characters and 20 bytes, by hand."""

import math

from exercises.marking import Wrong

WINDOWS = [(3.0, 4), (2.0, 4), (8.0, 1)]  # 28 nats over 9 tokens
TEXT = "Où est le café…?"


def check(answer) -> None:
    nats, tokens, n_bytes = 28.0, 9, len(TEXT.encode())
    right = nats / math.log(2) / n_bytes
    of_means = (3.0 + 2.0 + 8.0) / 3 * tokens
    found = answer.bits_per_byte(list(WINDOWS), TEXT)
    known = {
        "the mean of the windows' means: the last window has 1 token, the others 4":
            of_means / math.log(2) / n_bytes,
        "per window: a window's mean loss counts once for each of its tokens":
            13 / math.log(2) / n_bytes,
        "nats per byte: divide by ln 2": nats / n_bytes,
        "multiplied by ln 2: a nat is more than a bit, so divide": nats * math.log(2) / n_bytes,
        "bits per token: divide by the bytes of the text": nats / math.log(2) / tokens,
        "bits per byte and token: the sum of the losses is wanted, not the mean":
            nats / tokens / math.log(2) / n_bytes,
        "bits per character: the text has 16, and 20 bytes": nats / math.log(2) / len(TEXT),
    }  # fmt: skip
    for words, wrong in known.items():
        if math.isclose(found, wrong, rel_tol=1e-6):
            raise Wrong(f"{found:.4f} is {words}")
    if not math.isclose(found, right, rel_tol=1e-6):
        raise Wrong(f"28 nats over 20 bytes are {right:.4f} bits per byte, not {found:.4f}")
