"""Exercise 5, stage 1: bits per byte.

The loss of a model is in nats per token. A tokenizer with longer tokens has fewer of them, each
harder to predict, so losses with different tokenizers can't be compared. Bits per byte can: they
are the cost of encoding the text with the model's predictions, divided by the size of the text.

    bits per byte = (sum of the losses of all tokens in nats) / ln 2 / (bytes of the text)

An evaluation goes through a text window by window and computes the mean loss of each. The last
window is shorter, so the mean of the windows' means is not the mean over the tokens.
(The Pile, Gao et al., 2020, section 3.1; 1 bit = ln 2 nats.)
"""


def bits_per_byte(windows: list[tuple[float, int]], text: str) -> float:
    """windows: for each window its mean loss in nats and its number of tokens. text: the text of
    all these tokens; its bytes are those of UTF-8."""
    raise NotImplementedError


# region Hint. Fold this away; open it when you are stuck.
#
# mean · count is a window's sum. math.log(2) nats are a bit, so there are more bits than nats.
# len(text) counts characters, and "é" is one character but two bytes: take len(text.encode()).
# endregion
