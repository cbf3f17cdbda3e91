"""Single steps of a schedule of 100 steps, by hand, as shares of the maximum."""

import math

from exercises.marking import Wrong

READY_MADE = {"LambdaLR", "CosineAnnealingLR", "OneCycleLR", "SequentialLR"}
LR, WARMUP, STEPS = 2.0, 10, 100
# step → the learning rate, and what a value would mean
WARM = {
    0: (0.1, {
        0.0: "it is wasted: warm up from lr / warmup_steps",
        1.0: "there is no warm-up",
        1 / 11: "divide by warmup_steps, so that its last step has the maximum",
        0.1 + 0.9 * (1 + math.cos(math.pi / 9)) / 2: "the warm-up's value is not returned",
    }),
    4: (0.5, {}),
    9: (1.0, {}),
}  # fmt: skip
DECAY = {
    10: (1.0, {
        1.1: "0.1 is added to a whole cosine, not to 0.9 of it, or warm-up is a step too long",
        0.1: "the cosine is upside down: cos(0) is 1",
        0.1 + 0.9 * (1 + math.cos(0.1 * math.pi)) / 2:
            "progress counts from step 0: it is 0 at the end of the warm-up",
    }),
    25: (0.1 + 0.9 * (1 + math.cos(math.pi / 6)) / 2, {
        0.1 + 0.9 * (1 - 1 / 6): "that is a straight line: take a cosine",
        0.1 + 0.9 * (1 + math.cos(math.pi / 3)) / 2: "that is a whole cosine: π · progress, half",
        0.1 + 0.9 * (1 + math.cos(0.15 * math.pi)) / 2:
            "progress is 1 at `steps`: divide by steps - warmup_steps",
        (1 + math.cos(math.pi / 6)) / 2: "the cosine goes to 0: to a tenth of the maximum",
    }),
    55: (0.55, {0.1: "that is a whole cosine, which rises again: take half of it"}),
    99: (0.1 + 0.9 * (1 + math.cos(math.pi * 89 / 90)) / 2, {}),
    100: (0.1, {
        0.0: "the cosine goes to 0: to a tenth of the maximum",
        0.1 / LR: "that is 0.1, not 0.1 · lr",
    }),
    145: (0.1, {0.55: "it rises again after the last step: stay at a tenth"}),
    1000: (0.1, {}),
}  # fmt: skip


def check(answer) -> None:
    for step, (right, known) in (WARM | DECAY).items():
        found = answer.learning_rate(step, LR, WARMUP, STEPS) / LR
        if math.isclose(found, right, abs_tol=1e-9):
            continue
        why = "".join(f": {why}" for value, why in known.items() if abs(found - value) < 1e-9)
        raise Wrong(f"of 100 steps with 10 of warm-up, step {step} has {found:.4f} of the maximum, "
                    f"not {right:.4f}{why}")  # fmt: skip
    if not math.isclose(answer.learning_rate(0, 3.0, 0, 10), 3.0):
        raise Wrong("without warm-up, step 0 does not have the maximum")
