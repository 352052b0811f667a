"""All contenders of ``train_speed.py`` take the same steps; and the goals, as ratios of interleaved runs.

OMP_NUM_THREADS=1 python -m pytest tests/speed/test_train_speed.py -m speed
"""

import json
import sys

import pytest
import torch
import train_speed
from torch import Tensor
from train_cases import CASES, RATE, WARM, Case, Single
from train_compiled import Functional, by_engine, captured, no_compiler
from train_speed import measure

from bench.train import Trainer
from bench.trained import Member

MLPS = Case(3, 12, (4,), 8, 2, 1.0)
CNNS = Case(3, 5, (2, 4, 4), 4, 1, 1.0)
STEPS = 6


def trained_by_hand(nets: list[Single], steps: int) -> dict[str, Tensor]:
    """Their parameters after so many steps of torch.optim.SGD, [m, *shape]; ``nets`` go there."""
    for _ in range(steps):
        for single in nets:
            single.step()
    return {name: torch.stack([single.net.get_parameter(name).detach() for single in nets])
            for name, _ in nets[0].net.named_parameters()}  # fmt: skip


def check(found: dict[str, Tensor], nets: list[Single]) -> None:
    """These parameters are those that ``nets`` come to, to float32 rounding of how far they move."""
    start, end = trained_by_hand(nets, 0), trained_by_hand(nets, STEPS)
    moved = {name: float((end[name] - start[name]).abs().max()) for name in end}
    assert max(moved.values()) > 1e-4  # else any step would do
    for name, expected in end.items():
        torch.testing.assert_close(found[name], expected, rtol=1e-6, atol=1e-3 * moved[name])


def functional(nets: list[Single], apart: bool, compiled: bool) -> dict[str, Tensor]:
    function = Functional(nets, apart)
    done = len(function.compile()) if compiled else 0
    for _ in range(STEPS - done):
        function.step()
    if not apart:
        return function.params[0]
    return {name: torch.stack([params[name] for params in function.params]) for name in function.params[0]}


@pytest.mark.parametrize("case", [MLPS, CNNS], ids=["mlps", "cnns"])
def test_the_step_alone_is_that_of_torchs_sgd(case):
    nets = [Single(case) for _ in range(case.members)]
    batches = by_engine(case, nets)
    for _ in range(STEPS):
        for batch in batches:
            batch.step()
    check({name: torch.cat([batch.here.views[name] for batch in batches]) for name in batches[0].here.views}, nets)


@pytest.mark.parametrize("case", [MLPS, CNNS], ids=["mlps", "cnns"])
def test_the_trainers_steps_are_those_of_torchs_sgd(case):
    nets = [Single(case) for _ in range(case.members)]
    trainer = Trainer(richness=1.0, max_steps=STEPS, rate=RATE, tolerance=0.0, device="cpu")
    trained = trainer.fit(case.model(), [case.task()], [Member(0, i) for i in range(case.members)])
    for i, single in enumerate(nets):
        single.net.load_state_dict({name: values[i, 0] for name, values in trained.params.items()})
        single.z_0 = single.net(single.x).detach()
    check({name: values[:, -1] for name, values in trained.params.items()}, nets)


@pytest.mark.parametrize("apart", [False, True])
@pytest.mark.parametrize("case", [MLPS, CNNS], ids=["mlps", "cnns"])
def test_the_step_that_is_compiled_is_that_of_torchs_sgd(case, apart):
    nets = [Single(case) for _ in range(case.members)]
    check(functional(nets, apart, compiled=False), nets)


@pytest.mark.slow  # compilers take half a minute
@pytest.mark.filterwarnings("ignore:`torch.jit")  # torch's compiler imports what torch has deprecated
@pytest.mark.parametrize("apart", [False, True])
def test_the_compiled_step_is_that_of_torchs_sgd(apart):
    if (reason := no_compiler()) is not None:
        pytest.skip(reason)
    nets = [Single(MLPS) for _ in range(MLPS.members)]
    check(functional(nets, apart, compiled=True), nets)


@pytest.mark.gpu
@pytest.mark.filterwarnings("ignore:TensorFloat32", "ignore:`torch.jit")
@pytest.mark.parametrize("kind", ["captured", "reduce-overhead"])
def test_cuda_graphs_take_the_steps_of_torchs_sgd(kind):
    if not torch.cuda.is_available():
        pytest.skip("torch sees no GPU here")
    case = Case(3, 12, (4,), 8, 2, 1.0, device="cuda")
    nets = [Single(case) for _ in range(case.members)]
    if kind == "captured":
        (batch,) = by_engine(case, nets)
        step, params, done = captured(batch.step), dict(batch.here.views), WARM
    else:
        function = Functional(nets, apart=False)
        done = len(function.compile("reduce-overhead"))
        step, params = function.step, function.params[0]
    for _ in range(STEPS - done):
        step()
    torch.cuda.synchronize()
    check(params, nets)


def test_a_case_for_a_gpu_is_skipped_with_its_reason(monkeypatch, capsys, tmp_path):
    if torch.cuda.is_available():
        pytest.skip("there is a GPU here")
    name = next(name for name, case in CASES.items() if case.device == "cuda")
    path = tmp_path / "speed.json"
    monkeypatch.setattr(sys, "argv", ["train_speed.py", "--case", name, "--json", str(path)])
    train_speed.main()
    assert f"skipped: {name}: torch sees no GPU here" in capsys.readouterr().err
    written = json.loads(path.read_text())
    assert written["not_measured"][name] == "no GPU"
    assert set(written["not_measured"]) == set(CASES)


@pytest.mark.speed
@pytest.mark.parametrize("name", [name for name, case in CASES.items() if case.device == "cpu"])
def test_beside_a_loop_of_torchs_sgd(name):
    found = measure(CASES[name], runs=5, seconds=0.2)["ratio"]
    assert found["ours"] >= CASES[name].goal, found


@pytest.mark.speed
@pytest.mark.gpu
@pytest.mark.parametrize("name", [name for name, case in CASES.items() if case.device == "cuda"])
def test_beside_a_loop_on_a_gpu(name):
    if not torch.cuda.is_available():
        pytest.skip("torch sees no GPU here")
    found = measure(CASES[name], runs=5, seconds=0.5)["ratio"]
    assert found["ours"] >= CASES[name].goal, found
