"""Exercise 12, stage 6: the learning rate of a step.

AdamW divides by the root of a running mean of squared gradients. At first this mean is of only a
few, so the first steps are kept small (warm-up). Later, ever smaller steps settle what large ones
left rough (decay). The learning rate rises in a straight line to its maximum, then falls as half a
cosine to a tenth of it, and stays there:

    steps 0 to warmup_steps - 1    lr · (step + 1) / warmup_steps
    step warmup_steps              lr
    in between                     lr · (0.1 + 0.9 · (1 + cos(π · progress)) / 2)
    from `steps` on                lr / 10

where progress goes from 0 at warmup_steps to 1 at `steps`.
(Brown et al., 2020, appendix B; Loshchilov and Hutter, 2017, for the cosine.)
"""


def learning_rate(step: int, lr: float, warmup_steps: int, steps: int) -> float:
    """The learning rate of a step, counted from 0; lr is the maximum. warmup_steps may be 0, and is
    less than steps."""
    raise NotImplementedError


# region Hint. Fold this away; open it when you are stuck.
#
# Three cases, two of them left early: if step < warmup_steps, if step >= steps, and then progress =
# (step - warmup_steps) / (steps - warmup_steps). Without the second case the cosine would rise
# again after the last step. Step 0 has lr / warmup_steps, since 0 would change nothing.
# endregion
