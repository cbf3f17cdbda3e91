"""What a search tries: phases, each with fewer and longer trials than the one before; the space of
hyper-parameters; and the next trial's values, sampled by Optuna, none of them twice."""

import itertools
import math
import random
from dataclasses import dataclass

import optuna
from optuna.distributions import CategoricalDistribution
from optuna.samplers import GridSampler, TPESampler
from optuna.trial import FrozenTrial

from common.kit.cli import UserError
from common.model import GPTConfig
from common.presets import preset

WARMUP_STEPS = 10  # of a trial, and of a run with best.toml
SPACE = ("lr", "batch_size", "block_size", "n_embd", "n_layer", "n_head")
MAX_REPEATS = 20  # a sampler's attempts to find new values; then any untried ones are taken


@dataclass(frozen=True)
class Phase:
    """A number of trials, each trained from step `first` to step `last`."""

    trials: int
    first: int
    last: int

    @property
    def steps(self) -> int:
        return self.last - self.first


def read_phases(text: str) -> list[Phase]:
    """The phases of a text such as 24x50,8x150,3x500. Raises UserError unless each phase has fewer
    trials than the one before, and more steps."""
    phases = [Phase(math.inf, 0, 0)]
    for part in text.split(","):
        try:
            trials, last = (int(n) for n in part.split("x"))
        except ValueError:
            raise UserError(f"--phases {text}: give TRIALSxSTEPS,…, as 24x50,8x150,3x500") from None
        if not 0 < trials < phases[-1].trials or last <= phases[-1].last:
            hint = "give each phase fewer trials than the one before, and more steps"
            raise UserError(f"--phases {text}: {hint}")
        phases.append(Phase(trials, phases[-1].last, last))
    return phases[1:]


def total_steps(phases: list[Phase]) -> int:
    """The steps of all trials together. No step is trained twice."""
    return sum(phase.trials * phase.steps for phase in phases)


def read_space(options) -> dict[str, tuple]:
    """The values of each hyper-parameter, by name, from options with these names. Raises UserError
    for values that no model can have."""
    space = {name: tuple(dict.fromkeys(getattr(options, name))) for name in SPACE}
    if not space["n_head"]:
        del space["n_head"]  # heads of 64 channels, see config_of
    for name, values in space.items():
        if not values:
            raise UserError(f"--{name.replace('_', '-')} has no value: give one or more")
    for width in space["n_embd"]:
        for heads in space.get("n_head", (width / 64,)):
            if heads != int(heads) or width % heads:
                hint = "give --n-embd in multiples of 64, or --n-head that divide it"
                raise UserError(f"a width of {width} and {heads:g} heads: {hint}")
    return space


def model_name(values: dict) -> str:
    """A trial's model. Its heads have 64 channels, as in GPT-2, unless the trial gives n_head."""
    heads = values.get("n_head", values["n_embd"] // 64)
    return f"{values['n_layer']}x{heads}x{values['n_embd']}"


def config_of(values: dict) -> GPTConfig:
    return preset(model_name(values), block_size=values["block_size"])


def distributions(space: dict[str, tuple]) -> dict[str, CategoricalDistribution]:
    return {name: CategoricalDistribution(values) for name, values in space.items()}


def new_values(space: dict[str, tuple], name: str, seed: int, tried: list[FrozenTrial]) -> dict:
    """Values that no trial in `tried` has: the named sampler's if it finds some, else any. The
    sampler works on a copy of the study, where its repeats leave no trace."""
    if name == "grid":  # one random order for the whole search
        sampler = GridSampler(space, seed % 2**32)
    else:  # a new seed for each trial, so that no two processes draw the same values
        sampler = TPESampler(seed=(seed + len(tried)) % 2**32, constant_liar=True)
    copy = optuna.create_study(sampler=sampler)
    copy.add_trials(tried)
    seen = [trial.params for trial in tried]
    for _ in range(MAX_REPEATS):
        values = copy.ask(distributions(space)).params
        if values not in seen:
            return values
    products = itertools.product(*space.values())
    whole = (dict(zip(space, values, strict=True)) for values in products)
    return random.Random(seed + len(seen)).choice([v for v in whole if v not in seen])
