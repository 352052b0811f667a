"""A diagnosis against brute force: many training sets, left-out points, a network that is the regression itself."""

import itertools
import math

import numpy as np
import pytest
import torch
from scipy.stats import spearmanr

from bench.diagnose import diagnose, main
from bench.ntk import empirical_ntk
from models.limits import infinite_width
from models.mlp import mlp
from tasks.hypercube import staircase
from tasks.images import FASHION, fashion_mnist


@pytest.fixture(scope="module")
def task():
    made = staircase(d=6, n_train=24, n_test=40, seed=1)
    x, y = torch.cat([made.x_train, made.x_test]).double(), torch.cat([made.y_train, made.y_test]).double()
    gram = infinite_width(mlp(6, 8, 2, 1, b_std=0.3))(x).ntk
    return x, y, gram.numpy()


def regression(K, y, train, ridge=0.0):
    return K[:, train] @ np.linalg.solve(K[np.ix_(train, train)] + ridge * np.eye(len(train)), y[train])


@pytest.mark.parametrize("ridge", [0.0, 2.0])
def test_predictions_are_means_over_training_sets(task, ridge):
    x, y, K = task
    Y, M, n = y.numpy(), len(y), 24
    found = diagnose(K, x, y, n, ridge=ridge)
    vectors = np.linalg.eigh(K).eigenvectors
    modes = vectors[:, ::-1].T
    edges = [round(edge * M) for edge in (0, 0.01, 0.1, 0.3, 1)]
    generator = np.random.default_rng(0)
    errors, shares = [], []
    for _ in range(600):
        train = generator.permutation(M)[:n]
        f = regression(K, Y, train, ridge)
        test = np.setdiff1d(np.arange(M), train)
        left = np.zeros_like(Y)
        left[test] = (Y - f)[test]
        errors.append((left**2).sum() / (Y[test] ** 2).sum())
        v, u = modes @ Y, modes @ left
        bands = [slice(*ends) for ends in itertools.pairwise(edges)]
        shares.append([1 - M / (M - n) * (v[band] * u[band]).sum() / (v[band] ** 2).sum() for band in bands])
    # Eigenlearning is exact for many points only: with 64, some per cent beside the scatter of 600 sets.
    assert found.predicted == pytest.approx(np.mean(errors), rel=0.1)
    assert np.mean(errors) < 0.9
    predicted = np.array([band.predicted for band in found.bands])
    for share, expected, power in zip(predicted, np.mean(shares, 0), [band.power for band in found.bands], strict=True):
        assert power < 0.01 or share == pytest.approx(expected, abs=0.06)
    assert sum(band.power for band in found.bands) == pytest.approx(1)
    assert sum(band.trace for band in found.bands) == pytest.approx(1)
    assert math.isnan(found.network)


def test_what_is_measured_is_measured(task):
    x, y, K = task
    Y, M, n = y.numpy(), len(y), 24
    found = diagnose(K, x, y, n)
    f = regression(K, Y, np.arange(n))
    assert found.measured == pytest.approx(((f - Y)[n:] ** 2).sum() / (Y[n:] ** 2).sum(), rel=1e-5)  # jitter
    left_out = [(regression(K, Y, np.delete(np.arange(M), i)) - Y)[i] for i in range(M)]
    assert found.leave_one_out == pytest.approx(np.sum(np.square(left_out)) / (Y**2).sum(), rel=1e-5)


def test_a_network_that_is_the_regression_does_not_depart_from_it(task):
    x, y, K = task
    n = 24
    f = regression(K, y.numpy(), np.arange(n))
    same = diagnose(K, x, y, n, network=f)
    for band in same.bands:
        assert band.power < 1e-6 or band.network == pytest.approx(band.regression, abs=1e-4)  # jitter
    assert "learns what its kernel does" in str(same)
    better = diagnose(K, x, y, n, network=y + 0.5 * (torch.from_numpy(f) - y))
    assert "learns more than its kernel" in better.verdict
    assert better.network == pytest.approx(same.network / 4, rel=1e-4)


def test_parity_is_not_learnt_by_a_kernel_that_knows_antipodes_only():
    """A kernel that is nearly the odd delta learns of a parity the share of points whose antipode it saw."""
    d, n = 7, 64
    codes = torch.arange(2**d)[torch.randperm(2**d, generator=torch.Generator().manual_seed(0))]
    x = 1.0 - 2 * ((codes[:, None] >> torch.arange(d)) & 1).double()
    y, c = x.prod(1), x @ x.T / d
    w = 6.0
    K = math.exp(-w * w) * (torch.sinh(w * w * c) + w * w * c * torch.cosh(w * w * c))  # NTK of sin(6 z)
    found = diagnose(K, x, y, n)
    trained = {tuple(row) for row in x[:n].tolist()}
    seen = np.mean([tuple(row) in trained for row in (-x[n:]).tolist()])
    learnt = sum(band.power * band.regression for band in found.bands)
    assert learnt == pytest.approx(seen, abs=0.02)
    assert found.measured == pytest.approx(1 - seen, abs=0.02)  # the others are predicted as 0


def test_a_kernel_comes_in_any_form(task):
    x, y, _ = task
    torch.manual_seed(0)
    net = mlp(6, 32, 1, 1).double()
    K = empirical_ntk(net, x, outputs=0)
    limit = infinite_width(net)
    for one, other in ((net, K), (lambda x: K, K.numpy()), (limit, limit(x).ntk)):
        forms = [diagnose(form, x, y, 24) for form in (one, other)]
        assert forms[0].alignment == pytest.approx(forms[1].alignment, rel=1e-9)
        assert forms[0].predicted == pytest.approx(forms[1].predicted, rel=1e-9)
    own, left = diagnose(net, x, y, 24), (net(x) - y).detach()[24:]
    assert own.network == pytest.approx(float(left.square().sum() / y[24:].square().sum()))


def test_shuffled_labels_are_said_to_be_at_chance(task):
    x, y, K = task
    shuffled = y[torch.randperm(len(y), generator=torch.Generator().manual_seed(3))]
    assert "not aligned with the task beyond chance" in diagnose(K, x, shuffled).verdict
    assert "is aligned" in diagnose(K, x, y).verdict


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"n": 64}, "n must be a whole number from 1 to 63"),
        ({"x": torch.ones(3, 6)}, "as many rows"),
        ({"kernel_or_network": torch.eye(5)}, r"kernel must be \[64, 64\]"),
        ({"network": torch.ones(64, 2)}, "outputs must be those of y"),
        ({"y": torch.full((64,), torch.nan)}, "y must be finite"),
        ({"y": torch.ones(64, 2)}, "y must differ between points"),
        ({"y": 1e-200 * torch.arange(64).double()}, "y must differ between points"),
        ({"y": ["a"] * 64}, "y must be a number or an array of numbers, not list"),
        ({"x": "abc"}, "x must be a number or an array of numbers, not str"),
        ({"network": torch.full((64, 1), torch.nan)}, "The network's outputs must be finite"),
        ({"kernel_or_network": torch.full((64, 64), torch.nan)}, "The kernel must be finite"),
        ({"kernel_or_network": torch.zeros(64, 64)}, "The kernel must not be 0 everywhere"),
        ({"kernel_or_network": torch.eye(64) + torch.ones(64, 64).triu()}, "kernel must be symmetric"),
        ({"kernel_or_network": -torch.eye(64)}, "kernel must be positive semidefinite"),
        ({"kernel_or_network": "relu:4"}, "The kernel must be a number or an array of numbers, not str"),
        ({"kernel_or_network": torch.nn.Sequential(torch.nn.Flatten())}, "The network must have parameters"),
        ({"ridge": -1.0}, "ridge must be a finite number of at least 0"),
        ({"ridge": "much"}, "ridge must be a finite number of at least 0"),
    ],
)
def test_refusals(task, change, sentence):
    x, y, K = task
    with pytest.raises(ValueError, match=sentence):
        diagnose(**{"kernel_or_network": K, "x": x, "y": y, **change})


def test_command(tmp_path, capsys):
    settings = ["model.width=32", "task.n_train=24", "task.n_test=40", "seeds.data=1", "seeds.init=1",
                "trainer.tolerance=0.01", f"runs={tmp_path}", "report=null"]  # fmt: skip
    assert main(["task=staircase", *settings]) == 0
    out = capsys.readouterr().out
    for word in ("infinite width", "initial", "after", "permutation z", "test error of the network"):
        assert word in out
    assert main(["tasks=staircase"]) == 2
    assert "tasks must be all" in capsys.readouterr().err
    assert main(["task=stairs", *settings]) == 2
    assert capsys.readouterr().err.startswith("widebench: Unknown task 'stairs'")
    assert main(["task=staircase", *settings[:1], "task.n_train=1", "task.n_test=2", *settings[3:]]) == 2
    assert capsys.readouterr().err == "widebench: x and y must have as many rows, at least 4, not 3 and 3.\n"


@pytest.mark.slow
def test_it_ranks_fashion_mnist_pairs_by_test_error(data_folder):
    """All 45 pairs. The more of the target is in the leading tenth of the modes, the lower the error of regression with
    150 points on 250 others: a negative rank correlation."""
    limit = infinite_width(mlp(784, 8, 3, 1, b_std=0.1))
    found = []
    for pair in itertools.combinations(FASHION, 2):
        made = fashion_mnist(classes=pair, n_train=150, n_test=250, seed=0, folder=data_folder)
        x, y = torch.cat([made.x_train, made.x_test]), torch.cat([made.y_train, made.y_test])
        judged = diagnose(limit, x, y, 150)
        blind = diagnose(limit, made.x_train, made.y_train)  # sees no test point
        found.append((blind.power_tenth, judged.predicted, blind.leave_one_out, judged.measured))
    power, predicted, left_out, error = np.array(found).T
    assert len(error) == 45
    assert spearmanr(power, error).statistic < -0.85
    assert spearmanr(predicted, error).statistic > 0.95
    assert spearmanr(left_out, error).statistic > 0.85


def test_a_study_is_refused(tmp_path, capsys):
    assert main(["experiment=peak", f"runs={tmp_path}", f"report={tmp_path}"]) == 2
    captured = capsys.readouterr()
    assert "is a study; bench.diagnose takes a cell" in captured.err
    assert captured.out == ""
    assert captured.err.count("\n") == 1


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["-m", "task=staircase"], "no flag -m"), (["digits"], "'digits' is no setting"),
        (["task=staircase", "task.seed=5"], "task.seed is not set here"),
        (["model.width=8,16"], "takes one cell"),
    ],
)  # fmt: skip
def test_many_cells_are_refused_in_one_sentence(arguments, says, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(arguments) == 2
    said = capsys.readouterr().err
    assert says in said
    assert "add -m" not in said
    assert said.count("\n") == 1
