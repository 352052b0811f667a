"""``bench.score`` on networks that the suite's trainer has never seen, against numpy written out by hand."""

import copy
import subprocess
import sys

import numpy as np
import pytest
import torch
from torch import nn

from bench import score


def data(outputs: int = 1):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(60, 6, generator=generator)
    y = torch.sin(x[:, :outputs]) * x[:, 1:2]
    return x[:40], y[:40], x[40:], y[40:]


def fitted(net: nn.Module, x, y, steps: int = 300) -> tuple[nn.Module, nn.Module]:
    start = copy.deepcopy(net)
    optimiser = torch.optim.Adam(net.parameters(), lr=3e-3)
    for _ in range(steps):
        optimiser.zero_grad()
        (net(x) - y).square().mean().backward()
        optimiser.step()
    return start, net.eval()


def plain(seed: int, outputs: int = 1) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(6, 64), nn.Tanh(), nn.Linear(64, outputs))


def regression(net: nn.Module, start: nn.Module, x, y, x_test) -> np.ndarray:
    """f_0 + K (y - f_0), with the kernel of ``net`` from a plain Jacobian."""
    net, start = copy.deepcopy(net).double().eval(), copy.deepcopy(start).double().eval()
    rows = []
    for row in torch.cat([x, x_test]).double():
        gradients = torch.autograd.grad(net(row[None]).sum(), list(net.parameters()))
        rows.append(torch.cat([g.flatten() for g in gradients]))
    J, n = torch.stack(rows), len(x)
    K = (J @ J[:n].T).numpy()
    f_0 = start(torch.cat([x, x_test]).double()).detach().numpy()
    return f_0[n:] + K[n:] @ np.linalg.solve(K[:n], y.double().numpy() - f_0[:n])


def test_scores_are_those_of_the_plain_jacobian_uncentred():
    x, y, x_test, y_test = data()
    start, end = fitted(plain(0), x, y)
    scored = score(start, end, x, y, x_test, y_test)
    f_T = end.double()(x_test.double()).detach().numpy()
    for name, net in (("after", end), ("initial", start)):
        p = regression(net, start, x, y, x_test)
        r2 = 1 - ((p - f_T) ** 2).sum() / ((f_T - f_T.mean(0)) ** 2).sum()
        skill = 1 - ((p - f_T) ** 2).sum() / ((y_test.double().numpy() - f_T) ** 2).sum()
        # The jitter of 1e-10 moves a prediction by 1e-10 times the condition number, here below 1e5.
        assert scored[f"{name}/r2"].value == pytest.approx(r2, abs=1e-4)
        assert scored[f"{name}/skill"].value == pytest.approx(skill, abs=1e-4)
    assert scored["after/r2"].value != pytest.approx(scored["initial/r2"].value, abs=1e-2)  # the control


def test_batch_normalisation_keeps_the_statistics_of_each_checkpoint():
    x, y, x_test, y_test = data()
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(6, 64), nn.BatchNorm1d(64), nn.Tanh(), nn.Linear(64, 1))
    start, end = fitted(net, x, y)
    start.eval()
    assert not torch.equal(start[1].running_mean, end[1].running_mean)
    scored = score(start, end, x, y, x_test, y_test, kernels=("after", "initial", "features"))
    f_T = end.double()(x_test.double()).detach().numpy()
    for name, module in (("after", end), ("initial", start)):
        p = regression(module, start, x, y, x_test)
        r2 = 1 - ((p - f_T) ** 2).sum() / ((f_T - f_T.mean(0)) ** 2).sum()
        assert scored[f"{name}/r2"].value == pytest.approx(r2, abs=1e-4)


def test_several_inits_have_errors_and_the_page_and_the_table_are_whole(tmp_path):
    x, y, x_test, y_test = data()
    pairs = [fitted(plain(seed), x, y) for seed in range(3)]
    scored = score([a for a, _ in pairs], [b for _, b in pairs], x, y, x_test, y_test)
    assert scored["after/skill"].n_seeds == 3
    assert np.isfinite(scored["after/skill"].standard_error)
    text = str(scored)
    for words in ("after kernel", "initial kernel", "lazy theory", "last features", "Laplace", "verdict"):
        assert words in text
    scored.save(tmp_path / "page.html")
    page = (tmp_path / "page.html").read_text()
    assert page.startswith("<!DOCTYPE html>")
    assert "<svg" in page
    with pytest.raises(KeyError, match="after/r2"):
        scored["after/r3"]


def test_without_test_labels_there_is_no_skill():
    x, y, x_test, _ = data()
    start, end = fitted(plain(0), x, y)
    scored = score(start, end, x, y[:, 0], x_test)
    assert np.isfinite(scored["after/r2"].value)
    assert not any("skill" in s.name or s.name.startswith("labels") for s in scored.record.scores)
    assert "no verdict" in str(scored)


def test_gamma_and_outputs():
    x, y, x_test, y_test = data(outputs=3)
    start, end = fitted(plain(0, outputs=3), x, y)
    with torch.no_grad():
        for net in (start, end):
            net[2].weight.mul_(2)
            net[2].bias.mul_(2)
    doubled = score(start, end, x, y, x_test, y_test, gamma=2.0, kernels=["after"])
    with torch.no_grad():
        for net in (start, end):
            net[2].weight.div_(2)
            net[2].bias.div_(2)
    assert {s.name for s in doubled.record.scores} > {"after#trace/r2", "after#sum/r2"}
    once = score(start, end, x, y, x_test, y_test, kernels=["after"])
    network = "network/test_error"
    assert doubled[network].value == pytest.approx(once[network].value)


def test_a_limit_that_is_not_there_is_said_and_the_others_run():
    x, y, x_test, y_test = data()
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(6, 32), nn.Softmax(1), nn.Linear(32, 1))
    scored = score(*fitted(net, x, y, 50), x, y, x_test, y_test)
    assert "infinite: not scored" in str(scored)
    assert scored["after/r2"].n_seeds == 1


@pytest.mark.parametrize(
    ("change", "named"),
    [({"base": "trained"}, "base"), ({"kernels": ["final"]}, "kernels"), ({"gamma": 0.0}, "gamma"),
     ({"gamma": "a"}, "gamma"),
     ({"net_0": None}, "net_0"),
     ({"net_T": plain(0, outputs=2)}, "net_T"), ({"net_T": [plain(0), plain(1)]}, "net_T"),
     ({"y": torch.zeros(40, 2)}, "y"), ({"x_test": torch.full((20, 6), torch.nan)}, "NaN in x_test")],
)  # fmt: skip
def test_arguments_that_do_not_fit_are_named(change, named):
    x, y, x_test, _ = data()
    arguments = {"net_0": plain(0), "net_T": plain(1), "x": x, "y": y, "x_test": x_test}
    with pytest.raises(ValueError, match=named):
        score(**{**arguments, **change})


@pytest.mark.parametrize("command", [["-m", "bench"], ["-c", "import bench"]])
def test_somebody_elses_models_are_named_in_one_sentence(command, tmp_path):
    (tmp_path / "models").mkdir()
    done = subprocess.run([sys.executable, *command], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert "own package 'models'" in done.stderr
    assert done.returncode == (2 if command[0] == "-m" else 1)
    if command[0] == "-m":
        assert "Traceback" not in done.stderr
