"""How often each of five tokens is drawn, in 20,000 rows with the same known probabilities."""

import torch

from exercises.marking import Wrong

P = torch.tensor([0.05, 0.40, 0.10, 0.25, 0.20])
ROWS = 20_000
TOLERANCE = 0.02  # four standard deviations of a frequency near 0.5, and some more


def check(answer) -> None:
    next_ids = answer.next_ids
    logits = P.log().expand(ROWS, -1)
    check_greedy(next_ids)
    found = frequencies(next_ids, logits, 1.0, 3)
    if found[1] == 1:
        raise Wrong("at temperature 1 only the most probable token comes: draw, do not take argmax")
    if found[[1, 3, 4]].sum() == 0 or found[2] > 0 and found[4] == 0:
        raise Wrong("with top_k = 3 the ids are 0 to 2, places among the candidates: look up which "
                    "ids they are of")  # fmt: skip
    if found[0] > 0 or found[2] > 0:
        n = int((found > 0).sum())
        raise Wrong(f"with top_k = 3, {n} tokens are drawn: keep the 3 largest logits alone")
    compare(found, 1.0, 3)
    compare(frequencies(next_ids, logits, 2.0, 5), 2.0, 5)
    compare(frequencies(next_ids, logits, 0.5, 5), 0.5, 5)
    check_rows(next_ids)
    one, two, other = (next_ids(logits[:50], 1.0, 5, seed) for seed in (1, 1, 2))
    if not torch.equal(one, two):
        raise Wrong("the same seed gives other ids: draw with a torch.Generator of that seed")
    if torch.equal(one, other):
        raise Wrong("seeds 1 and 2 give the same ids: seed the generator with seed")


def check_greedy(next_ids) -> None:
    try:
        out = next_ids(P.log().expand(64, -1), 0, 3, seed=1)
    except NotImplementedError:
        raise
    except (RuntimeError, ZeroDivisionError):
        raise Wrong("temperature 0 is divided by: it means the most probable token") from None
    if out.shape != (64, 1) or out.dtype != torch.int64:
        raise Wrong(f"for 64 rows the ids are {tuple(out.shape)} of {out.dtype}, not (64, 1) int64")
    if (out != 1).any():
        raise Wrong("at temperature 0 the token is not the most probable one")


def frequencies(next_ids, logits, temperature, top_k) -> torch.Tensor:
    ids = next_ids(logits, temperature, top_k, seed=7)
    return torch.bincount(ids.flatten(), minlength=5) / len(ids)


def expected(power, top_k) -> torch.Tensor:
    p = P**power  # power 0: all alike
    p[P.argsort(descending=True)[top_k:]] = 0
    return p / p.sum()


def compare(found, temperature, top_k) -> None:
    right = expected(1 / temperature, top_k)
    if torch.allclose(found, right, atol=TOLERANCE):
        return
    at = f"at temperature {temperature}"
    if torch.allclose(found, expected(temperature, top_k), atol=TOLERANCE):
        raise Wrong(f"{at} the logits are multiplied by the temperature: divide")
    if torch.allclose(found, expected(0.0, top_k), atol=TOLERANCE):
        raise Wrong(f"{at} all come equally often: the softmax is over the tokens, the last "
                    "dimension")  # fmt: skip
    if torch.allclose(found, expected(1.0, top_k), atol=TOLERANCE):
        raise Wrong(f"{at} the tokens come as at temperature 1: divide the logits by it")
    worst = int((found - right).abs().argmax())
    raise Wrong(f"{at}, top_k {top_k}, a token of probability {right[worst]:.2f} comes "
                f"{found[worst]:.0%} of the time")  # fmt: skip


def check_rows(next_ids) -> None:
    """Each row has a certain token of its own, and far larger logits than the row before."""
    certain = torch.tensor([2, 0, 4])
    logits = torch.full((3, 5), -50.0).scatter(1, certain[:, None], 50.0)
    logits += torch.tensor([[0.0], [200.0], [400.0]])
    if not torch.equal(next_ids(logits, 1.0, 2, seed=3).flatten(), certain):
        raise Wrong("a row is not drawn from its own logits: work along the last dimension")
