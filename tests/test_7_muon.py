"""Stage 7: Muon, against torch's own."""

import torch
from test_6_gpt2_train_hyparam import small_model

from common.muon import Muon
from common.optim import adamw, parameter_groups, set_lr


def with_gradients(model, seed: int = 0):
    draw = torch.Generator().manual_seed(seed)
    for p in model.parameters():
        p.grad = torch.randn(p.shape, generator=draw)
    return model


def test_muon_turns_all_directions_of_a_matrix_alike():
    """The update's singular values are all near lr · 0.2 · √(the longer side), whatever those of
    the gradient are: Newton-Schulz brings each near 1."""
    model = with_gradients(small_model())
    matrix = model.transformer.h[0].mlp.c_fc.weight
    before, lr = matrix.detach().clone(), 1e-2
    matrix.grad = matrix.grad @ torch.diag(torch.logspace(0, -1, matrix.size(1)))
    Muon(adamw(parameter_groups(model, 0.0), lr), model).step()
    sizes = torch.linalg.svdvals(before - matrix.detach()) / (lr * 0.2 * max(matrix.shape) ** 0.5)
    assert 0.6 < sizes.min() and sizes.max() < 1.3


def test_muon_is_torchs_for_the_blocks_matrices_and_adamw_for_all_else():
    ours, theirs = with_gradients(small_model()), with_gradients(small_model())
    optimizer = Muon(adamw(parameter_groups(ours, 0.1), 1e-2), ours)
    matrices = [p for p in theirs.transformer.h.parameters() if p.dim() == 2]
    others = [
        torch.optim.Muon(matrices, 1e-2, weight_decay=0.1, adjust_lr_fn="match_rms_adamw"),
        adamw(parameter_groups(theirs, 0.1), 1e-2),
    ]
    for p in matrices:  # AdamW leaves alone what has no gradient
        p.grad = None
    set_lr(optimizer, 5e-3)
    for other in others:
        set_lr(other, 5e-3)
    for seed in range(3):
        with_gradients(ours, seed), with_gradients(theirs, seed)
        optimizer.step()
        others[0].step()
        for p in matrices:
            p.grad = None
        others[1].step()
    for (name, a), b in zip(ours.named_parameters(), theirs.parameters(), strict=True):
        assert torch.equal(a, b), name
        keys = {"momentum_buffer"} if name[:14] == "transformer.h." and a.dim() == 2 else {
            "exp_avg", "exp_avg_sq", "step"}  # fmt: skip
        assert set(optimizer.state[a]) == keys
    optimizer.zero_grad()
    assert all(p.grad is None for p in ours.parameters())
