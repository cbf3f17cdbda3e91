"""What the form of AdamW and accumulation change about a training step, measured here and now."""

from collections.abc import Callable
from statistics import median

import torch

from common.bench import matmul_peak, timed
from common.distributed import Ranks
from common.optim import adamw, clip_gradients, parameter_groups
from common.tokenfiles import Ahead

ROWS = [("for-loop", 1), ("foreach", 1), ("fused", 1), ("fused", 2), ("fused", 4), ("fused", 8)]
WARMUP, STEPS = 2, 5


def bench(options, model, ranks: Ranks, flops: int, gradient: Callable, batches: Ahead) -> None:
    """Print a row for each of ROWS and, for the drift, the first again: medians of whole steps. And
    the share of the time in which steps waited for batches to be read.

    gradient(n) leaves the mean gradient of n micro-batches; flops are those of a token. A machine's
    clock changes within minutes, so MFU is the share of the faster of two peaks: the one measured
    just before a row's steps and the one just after.
    """
    groups, dtype = parameter_groups(model, options.weight_decay), getattr(torch, options.dtype)
    micro_tokens = options.batch_size * options.block_size * ranks.world_size
    print(f"\n{'AdamW':<9}{'accum.':>6}{'ms/step':>9}{'spread':>8}{'AdamW, ms':>11}"
          f"{'tokens/s':>10}{'×first':>8}{'peak, GF/s':>11}{'MFU':>7}")  # fmt: skip
    first, shares, before = None, [], ranks.sum(matmul_peak(ranks.device, dtype))
    for form, n_micro in [*ROWS, ROWS[0]]:
        optimizer = adamw(groups, options.lr, form)

        def gradient_and_clip(n=n_micro):
            gradient(n)
            clip_gradients(model, options.clip)

        wholes, updates = [], []
        waited = batches.waited
        for _ in range(WARMUP + STEPS):
            most, _ = timed(gradient_and_clip, ranks.device)
            update, _ = timed(optimizer.step, ranks.device)
            optimizer.zero_grad()
            wholes.append(most + update)
            updates.append(update)
        shares.append((batches.waited - waited) / sum(wholes))
        wholes, updates = wholes[WARMUP:], updates[WARMUP:]
        seconds = median(wholes)
        spread = (max(wholes) - min(wholes)) / 2 / seconds
        rate = micro_tokens * n_micro / seconds
        first = first or rate
        after = ranks.sum(matmul_peak(ranks.device, dtype))
        peak, before = max(before, after), after
        print(f"{form:<9}{n_micro:>6}{seconds * 1000:>9.0f}{f'±{spread:.0%}':>8}"
              f"{median(updates) * 1000:>11.1f}{rate:>10,.0f}{rate / first:>8.2f}"
              f"{peak / 1e9:>11,.0f}{flops * rate / peak:>7.1%}")  # fmt: skip
    print("The first row again, last, shows the drift.")
    print(f"waiting for data: {max(shares):.2%} of the time, at most in a row")
