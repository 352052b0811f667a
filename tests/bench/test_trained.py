"""Kernels of trained members, several at a time, against gradients by autograd, one sample of one member at a time."""

from dataclasses import replace

import torch
from torch import Tensor

from bench import trained as module
from bench.compare.metrics import r2, skill
from bench.train import Trainer
from bench.trained import Trained, members
from models.mlp import mlp
from tasks.task import Task


def cell() -> Trained:
    """Two data draws, three inits each."""
    generator = torch.Generator().manual_seed(0)

    def drawn(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    tasks = [Task("noise", drawn(5, 3), drawn(5, 1), drawn(4, 3), drawn(4, 1)) for _ in range(2)]
    return Trainer(richness=1.0, tolerance=0.5, snapshots=4).fit(mlp(3, 6, 2, 1, b_std=0.3), tasks, members(2, 3))


def by_autograd(trained: Trained, member: int, snapshot: int, x: Tensor) -> Tensor:
    """[len(x), parameters]: the gradient of the output at each point."""
    values = {name: value[member, snapshot].double().requires_grad_() for name, value in trained.params.items()}
    rows = []
    for point in x.double():
        z = torch.func.functional_call(trained.net, values, (point[None],)).sum()
        rows.append(torch.cat([part.flatten() for part in torch.autograd.grad(z, list(values.values()))]))
    return torch.stack(rows)


def test_kernels_of_all_members_are_their_own(monkeypatch) -> None:
    """To rounding: sums of some 60 products of numbers of order 1."""
    for limit in (module.TOGETHER, 2 * 8 * 9 * 5, 1):  # all of a draw, two, one at a time
        monkeypatch.setattr(module, "TOGETHER", limit)
        trained = cell()
        assert trained.snapshots > 2
        for snapshot in range(trained.snapshots):
            found = dict(trained.ntk.at(snapshot))
            assert sorted(found) == list(range(6))
            for member, kernel in found.items():
                task = trained.task(member)
                J = by_autograd(trained, member, snapshot, torch.cat([task.x_train, task.x_test]))
                expected = J @ J[: task.n_train].T
                torch.testing.assert_close(kernel[:, :, 0, 0], expected, rtol=1e-10, atol=1e-12)
                torch.testing.assert_close(trained.ntk[member, snapshot], kernel, rtol=1e-12, atol=1e-14)


def test_members_go_together_that_share_their_data_and_have_no_buffers(monkeypatch) -> None:
    trained = cell()
    assert trained.together(45) == [[0, 1, 2], [3, 4, 5]]
    chosen = trained.select([1, 3, 5])
    assert chosen.together(45) == [[0], [1, 2]]
    monkeypatch.setattr(module, "TOGETHER", 2 * 8 * 45)
    assert trained.together(45) == [[0, 1], [2], [3, 4], [5]]
    assert trained.together(10**9) == [[i] for i in range(6)]
    buffered = replace(trained, buffers={"mean": torch.zeros(6, trained.snapshots, 3)})
    assert buffered.together(45) == [[i] for i in range(6)]


def test_a_match_of_several_predictions_is_the_mean_of_theirs() -> None:
    p, f, y = torch.randn(4, 10, 2, dtype=torch.float64), torch.randn(10, 2).double(), torch.randn(10, 2).double()
    each = torch.tensor([[r2(one, f), skill(one, f, y)] for one in p], dtype=torch.float64).mean(0)
    torch.testing.assert_close(torch.tensor([r2(p, f), skill(p, f, y)], dtype=torch.float64), each, rtol=1e-12, atol=0)
