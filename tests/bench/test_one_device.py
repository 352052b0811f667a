"""Everything between the task and the scores stays on the device of the trainer (see ``tests/one_device.py``)."""

import pytest
import torch

import bench.descent
from bench.compare import Empirical, Features, InfiniteWidth, Linearised, Motion, Networks, Rivals
from bench.train import Trainer
from bench.trained import members, seed_of
from models.cnn import cnn
from models.mlp import mlp
from tasks.hypercube import staircase
from tasks.task import Task
from tests.one_device import OneDevice


def test_the_watch_sees_what_meta_alone_lets_through():
    with OneDevice(), pytest.raises(AssertionError, match="cpu and meta"):
        torch.ones(2, 3, device="meta") @ torch.ones(3, 2)
    with OneDevice(), pytest.raises(AssertionError, match="cpu and meta"):
        torch.zeros(3, device="meta")[torch.tensor([0, 1])]
    with OneDevice(), pytest.raises(RuntimeError):
        float(torch.ones((), device="meta"))


@pytest.mark.parametrize("kind", ["mlp", "cnn"])
def test_training_kernels_and_comparisons_stay_on_one_device(kind, monkeypatch):
    monkeypatch.setattr(Trainer, "torch_device", lambda self: torch.device("meta"))
    losses = iter([[1.0, 1.0], [0.5, 0.5], [1e-5, 1e-5]])
    reads = []

    def host(values):
        reads.append(values)
        return [next(losses)[: values.shape[1]], [1.0] * values.shape[1]]

    monkeypatch.setattr(bench.descent, "host", host)
    if kind == "mlp":
        tasks = [staircase(d=8, n_train=24, n_test=40, seed=seed_of("data", 0))]
        net = mlp(8, 16, 2, 1, b_std=0.4, readout_b_std=0.3)
    else:
        x, y = torch.randn(20, 1, 4, 4), torch.randn(20, 2)
        tasks, net = [Task("images", x[:12], y[:12], x[12:], y[12:])], cnn(1, 8, 1, 2, readout="gap")
    with OneDevice(answer=0.0) as watch:
        trained = Trainer(richness=1.0).fit(net, tasks, members(1, 2))
        assert trained.f_T.is_meta
        assert trained.ntk[0, -1].is_meta
        assert len(reads) == 3
        assert watch.reads == 0  # but for that one function, training waits for nothing
        comparisons = [
            Networks(),
            Empirical("after"),
            Empirical("initial"),
            Rivals(),
            Motion(),
            Linearised(),
            Features(),
        ]
        for comparison in [*comparisons, InfiniteWidth()]:
            assert comparison(trained), comparison
