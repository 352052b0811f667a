"""How near a prediction is to a trained network, and to the labels, on test points. All in float64."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from bench.compare.comparison import UnavailableError
from bench.gram import classes
from bench.losses import loss_of
from bench.record import Score, summarise
from bench.trained import Trained


def r2(prediction: Tensor, network: Tensor) -> float:
    """``1 - |p - f_T|^2 / |f_T - mean|^2``, the mean per output; [n, c] each. Of several predictions, [k, n, c], the
    mean of theirs."""
    return 1 - _ratio(_distance(prediction, network), (network - network.mean(0)).square().sum())


def skill(prediction: Tensor, network: Tensor, y: Tensor) -> float:
    """``1 - |p - f_T|^2 / |y - f_T|^2``: 0 is no better than knowing the answer y (clean labels). Of several, as r2."""
    return 1 - _ratio(_distance(prediction, network), (y - network).square().sum())


def relative_l2(prediction: Tensor, network: Tensor) -> float:
    """``|p - f_T| / |f_T|``."""
    return _ratio((prediction - network).square().sum(), network.square().sum()) ** 0.5


def squared_correlation(prediction: Tensor, network: Tensor) -> float:
    """Of all outputs together, each less its mean: R2 of the best multiple of the prediction."""
    one, two = ((values - values.mean(0)).flatten() for values in (prediction, network))
    return _ratio((one @ two).square(), one.square().sum() * two.square().sum())


def relative_error(prediction: Tensor, y: Tensor, loss: str = "mse") -> float:
    """Test loss over that of zero outputs: for mean squared error ``|p - y|^2 / |y|^2``."""
    if loss == "mse":
        return _ratio((prediction - y).square().sum(), y.square().sum())
    value, nothing = (loss_of(loss).value(f[None], y[None])[0] for f in (prediction, torch.zeros_like(prediction)))
    return _ratio(value, nothing)


def error_correlation(prediction: Tensor, network: Tensor, y: Tensor) -> float:
    """Correlation of the prediction's error p - y with the network's own, f_T - y."""
    one, two = (prediction - y).flatten(), (network - y).flatten()
    one, two = one - one.mean(), two - two.mean()
    return _ratio(one @ two, one.norm() * two.norm())


def agreement(one: Tensor, two: Tensor) -> float:
    """The share of points on which both name the same class."""
    return float((classes(one) == classes(two)).double().mean())


def match_scores(
    name: str,
    trained: Trained,
    predictions: Sequence[Tensor],
    ceilings: dict[str, float | None] | None = None,
    floors: dict[str, float | None] | None = None,
) -> list[Score]:
    """Every metric of one predictor; those against the labels only where the test labels are known.

    Args:
        name: the predictor, as in ``Score.name``.
        predictions: [n_test, c] a member.
        ceilings, floors: by metric ("r2", "skill").
    """
    columns: dict[str, list[float]] = {}
    for i, prediction in enumerate(predictions):
        network = network_outputs(trained, i)
        row = {
            "r2": r2(prediction, network),
            "squared_correlation": squared_correlation(prediction, network),
            "relative_l2": relative_l2(prediction, network),
            "class_agreement": agreement(prediction, network),
        }
        if trained.labelled:
            y, loss = clean_labels(trained, i), loss_name(trained)
            row |= {
                "skill": skill(prediction, network, known_answer(trained, i)),
                "test_error": relative_error(prediction, y, loss),
                "class_error": 1 - agreement(prediction, y),
            }
            if loss == "mse":  # logits have no error p - y
                row["error_correlation"] = error_correlation(prediction, network, y)
        for metric, value in row.items():
            columns.setdefault(metric, []).append(value)
    data = [member.data for member in trained.members]
    return [
        summarise(f"{name}/{metric}", values, data, (ceilings or {}).get(metric), (floors or {}).get(metric))
        for metric, values in columns.items()
    ]


def skill_of(trained: Trained, member: int, prediction: Tensor) -> float:
    """The skill of one member's prediction; nan where the test labels are not known."""
    if not trained.labelled:
        return float("nan")
    return skill(prediction, network_outputs(trained, member), known_answer(trained, member))


def loss_name(trained: Trained) -> str:
    """What the networks were trained by: "mse", "logistic" or "softmax"."""
    return str(trained.settings.get("loss", "mse"))


def known_answer(trained: Trained, member: int) -> Tensor:
    """What the clean test labels alone say of the network's outputs, [n_test, c]: the labels themselves.

    The outputs of a network trained by cross-entropy are logits, whose scale the labels do not know; there, the labels
    (less their mean over classes) times the factor that fits the outputs best, so that nothing is won by scale alone.
    """
    y = clean_labels(trained, member)
    if loss_name(trained) == "mse":
        return y
    if y.shape[1] > 1:
        y = y - y.mean(1, keepdim=True)
    network = network_outputs(trained, member)
    return y * ((y * network).sum() / y.square().sum())


def network_outputs(trained: Trained, member: int) -> Tensor:
    """f_T on the test points, [n_test, c]."""
    return trained.f_T[member, trained.task(member).n_train :]


def clean_labels(trained: Trained, member: int) -> Tensor:
    """The clean test labels, [n_test, c], where the network's outputs are.

    Raises:
        UnavailableError: they are not known.
    """
    if not trained.labelled:
        raise UnavailableError("It needs test labels, and none were given.")
    return trained.task(member).y_test.to(trained.f_T)


def train_labels(trained: Trained, member: int) -> Tensor:
    """The labels it was trained on, noise included, [n_train, c]."""
    return trained.task(member).y_train.to(trained.f_T)


def _distance(predictions: Tensor, network: Tensor) -> Tensor:
    """``|p - f_T|^2`` of one prediction, [n, c], or its mean over several, [k, n, c]."""
    return (predictions - network).square().sum((-2, -1)).mean()


def _ratio(numerator: Tensor, denominator: Tensor) -> float:
    """nan where nothing is divided by nothing: a constant network has no R2."""
    return float(torch.where(denominator > 0, numerator / denominator, torch.nan))
