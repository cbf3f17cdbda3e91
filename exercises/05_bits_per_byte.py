"""Exercise 5, stage 1: bits per byte.

The loss of a model is in nats per token. A tokenizer with longer tokens has fewer of them, each
harder to predict, so losses of models with different tokenizers do not compare. Bits per byte do:
what it costs to encode the text with the model's predictions, over the size of the text.

    bits per byte = (sum of the losses of all tokens in nats) / ln 2 / (bytes of the text)

An evaluation goes through a text window by window and has the mean loss of each. The last window is
shorter, so the mean of the windows' means is not the mean over the tokens.
(The Pile, Gao et al., 2020, section 3.1; 1 bit = ln 2 nats.)
"""


def bits_per_byte(windows: list[tuple[float, int]], text: str) -> float:
    """windows: for each window the mean loss in nats, and how many tokens it is the mean of. text:
    what these tokens say; it is stored as UTF-8."""
    raise NotImplementedError


# region Hint. Fold this away; open it when you are stuck.
#
# mean · count is a window's sum. math.log(2) nats are a bit, so there are more bits than nats.
# len(text) counts characters, of which "é" is one, but two bytes: len(text.encode()).
# endregion
