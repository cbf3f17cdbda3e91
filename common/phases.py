"""The phases of a search: ever fewer settings, trained ever longer."""

import math
from dataclasses import dataclass

from common.cli import UserError


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
