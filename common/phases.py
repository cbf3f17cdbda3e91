"""The phases of a search, ever fewer settings trained ever longer, and the space they are from."""

import math
import tomllib
from dataclasses import dataclass, replace
from pathlib import Path

from common.cli import UserError, check_lr_and_seed, check_positive, parse

SPACE = ("lr", "batch_size", "block_size", "n_embd", "n_layer", "n_head")


@dataclass(frozen=True)
class Phase:
    """So many settings, trained up to so many steps each."""

    settings: int
    steps: int


def read_phases(text: str) -> list[Phase]:
    """The phases of a text such as 24x50,8x150,3x500. Raises UserError for ones that do not narrow:
    each must have fewer settings than the one before, and more steps."""
    try:
        phases = [Phase(*(int(n) for n in part.split("x"))) for part in text.split(",")]
    except (ValueError, TypeError):
        raise UserError(f"--phases {text}: give SETTINGSxSTEPS,…, as 24x50,8x150,3x500") from None
    for one, two in zip([Phase(math.inf, 0), *phases], phases, strict=False):
        if not (0 < two.settings < one.settings and one.steps < two.steps):
            raise UserError(f"--phases {text}: give each phase fewer settings than the one before, "
                            "and more steps")  # fmt: skip
    return phases


def steps_in_all(phases: list[Phase]) -> int:
    """How many steps the phases are together, each trained once."""
    befores = [0, *(phase.steps for phase in phases)]
    return sum(p.settings * (p.steps - before) for p, before in zip(phases, befores, strict=False))


def read_space(options) -> dict[str, tuple]:
    """The values of each hyper-parameter, by name; a file's win over the options'. Raises UserError
    for what no model can have."""
    if options.space:
        try:
            found = tomllib.loads(Path(options.space).read_text())
            if not set(found) <= set(SPACE):
                raise ValueError(f"it has {', '.join(set(found) - set(SPACE))}")
            for name, values in found.items():
                if not isinstance(values, list) or any(type(v) not in (int, float) for v in values):
                    raise ValueError(f"{name} is no list of numbers")
            words = [(f"--{name.replace('_', '-')}", *map(str, v)) for name, v in found.items()]
            given = parse(type(options), [word for words in words for word in words])
            options = replace(options, **{name: getattr(given, name) for name in found})
        except (OSError, ValueError, TypeError, UserError) as error:
            raise UserError(f"--space {options.space} is no space: {error}") from None
    check_positive(options, *SPACE[1:])
    check_lr_and_seed(options)
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
