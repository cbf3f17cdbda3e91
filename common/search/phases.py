"""What a search tries: phases, ever fewer trials trained ever longer, and the space that the trials
are from."""

import math
import tomllib
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path

import torch

from common.kit.cli import UserError, check, parse
from common.model import GPT, GPTConfig
from common.presets import preset

SPACE = ("lr", "batch_size", "block_size", "n_embd", "n_layer", "n_head")


@dataclass(frozen=True)
class Phase:
    """So many trials, each trained up to so many steps."""

    trials: int
    steps: int


def read_phases(text: str) -> list[Phase]:
    """The phases of a text such as 24x50,8x150,3x500. Raises UserError for ones that do not narrow:
    each must have fewer trials than the one before, and more steps."""
    try:
        phases = [Phase(*(int(n) for n in part.split("x"))) for part in text.split(",")]
    except (ValueError, TypeError):
        raise UserError(f"--phases {text}: give TRIALSxSTEPS,…, as 24x50,8x150,3x500") from None
    for one, two in pairwise([Phase(math.inf, 0), *phases]):
        if not (0 < two.trials < one.trials and one.steps < two.steps):
            hint = "give each phase fewer trials than the one before, and more steps"
            raise UserError(f"--phases {text}: {hint}")
    return phases


def steps_of(phases: list[Phase]) -> list[int]:
    """How many steps each phase adds to those before, for each of its trials."""
    ends = [0, *(phase.steps for phase in phases)]
    return [end - start for start, end in pairwise(ends)]


def total_steps(phases: list[Phase]) -> int:
    """The steps of all trials together. None is trained twice."""
    return sum(p.trials * steps for p, steps in zip(phases, steps_of(phases), strict=True))


def read_space(options) -> dict[str, tuple]:
    """The values of each hyper-parameter, by name; those of --space replace the options'. Raises
    UserError for values that no model can have."""
    if options.space:
        options = _with_file(options)
    check(options)
    space = {name: tuple(dict.fromkeys(getattr(options, name))) for name in SPACE}
    for name, values in space.items():
        if not values and name != "n_head":
            raise UserError(f"--{name.replace('_', '-')} has no value: give one or more")
    space = {name: values for name, values in space.items() if values}
    for width in space["n_embd"]:
        for heads in space.get("n_head", (width / 64,)):
            if heads != int(heads) or width % heads:
                raise UserError(f"a width of {width} and {heads:g} heads: give --n-embd in "
                                "multiples of 64, or --n-head that divide it")  # fmt: skip
    return space


def _with_file(options):
    """The options, with the values of the file --space."""
    try:
        found = tomllib.loads(Path(options.space).read_text())
        if not set(found) <= set(SPACE):
            raise ValueError(f"it has {', '.join(sorted(set(found) - set(SPACE)))}")
        for name, values in found.items():
            if not isinstance(values, list) or any(type(v) not in (int, float) for v in values):
                raise ValueError(f"{name} is no list of numbers")
        words = [(f"--{name.replace('_', '-')}", *map(str, v)) for name, v in found.items()]
        given = parse(type(options), [word for words in words for word in words])
        return replace(options, **{name: getattr(given, name) for name in found})
    except (OSError, ValueError, TypeError, RecursionError, UserError) as error:
        raise UserError(f"--space {options.space} is no space: {error}") from None


def config_of(values: dict) -> GPTConfig:
    """A trial's model. Its heads have 64 channels, as GPT-2's, unless the trial says how many."""
    heads = values.get("n_head", values["n_embd"] // 64)
    name = f"{values['n_layer']}x{heads}x{values['n_embd']}"
    return preset(name, block_size=values["block_size"])


def largest(space: dict[str, tuple]) -> int:
    """The parameters of the space's largest model, counted without allocating it."""
    with torch.device("meta"):
        model = GPT(config_of({name: max(values) for name, values in space.items()}))
    return sum(p.numel() for p in model.parameters()) - model.lm_head.weight.numel()  # it is tied
