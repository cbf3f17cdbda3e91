"""GPT-2 124M with rows of 1,024 tokens, by hand."""

import math

from exercises.marking import Wrong

L, C, V, T = 12, 768, 50257, 1024
BLOCKS, HEAD, ATTENTION = 84_934_656, 38_597_376, 113_246_208  # weights, weights, FLOPs
RIGHT = 854_438_400


def check(answer) -> None:
    check_flops(answer.flops_per_token(L, C, V, T))
    if answer.flops_per_token(L, C, V, 1) == answer.flops_per_token(L, C, V, 2):
        raise Wrong("the FLOPs do not depend on T: attention's do")
    check_mfu(answer.mfu(2048, 500.0, 10**9, 16.384e12))


def check_flops(found: float) -> None:
    known = {
        "attention's own products, 12 · n_layer · C · T, are not counted": 6 * (BLOCKS + HEAD),
        "attention's own products are counted for one layer": 6 * (BLOCKS + HEAD) + ATTENTION // L,
        "the head is not counted: its product is one of the largest": 6 * BLOCKS + ATTENTION,
        "the look-ups of tokens are counted, too: only the head is a product":
            6 * (BLOCKS + 2 * HEAD) + ATTENTION,
        "the positions are counted, too: a look-up is no product":
            6 * (BLOCKS + HEAD + T * C) + ATTENTION,
        "that is the forward pass alone: backward costs twice as much again": RIGHT // 3,
        "that is the backward pass alone": RIGHT // 3 * 2,
        "a multiplication and an addition are 2 FLOPs": RIGHT // 2,
        "the MLP is 8 C² a layer, and attention 4 C²: one of them is missing":
            6 * (BLOCKS // 3 + HEAD) + ATTENTION,
    }  # fmt: skip
    for words, wrong in known.items():
        if found == wrong:
            raise Wrong(f"{found:,} FLOPs per token, not {RIGHT:,}: {words}")
    if found != RIGHT:
        raise Wrong(f"GPT-2 124M takes {RIGHT:,} FLOPs per token at T = 1024, not {found:,}")


def check_mfu(found: float) -> None:
    right = 0.25  # 2,048 tokens · 1e9 in half a second, of 16.384e12
    known = {
        "1,000 times too small: ms are milliseconds": right / 1000,
        "per cent: give a share, 0 to 1": 25.0,
        "upside down": 1 / right,
        "of one step, not of one second": right * 0.5,
    }
    for words, wrong in known.items():
        if math.isclose(found, wrong):
            raise Wrong(f"an MFU of {found:g} is {words}")
    if not math.isclose(found, right):
        raise Wrong(f"2,048 tokens of 1e9 FLOPs in 500 ms are {right} of a peak of 16.384e12, "
                    f"not {found:g}")  # fmt: skip
