"""Model, tasks and members that do not go together, each refused in one sentence before anything trains."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from bench.ntk.watch import reached
from bench.trained import Member, label_set
from models.blocks import out_of_memory
from tasks.task import Task


def check_draws(tasks: Sequence[Task], members: Sequence[Member]) -> None:
    """Raises: ValueError: no list of tasks of one shape, no members, or a member of a draw that is not there."""
    if isinstance(tasks, Task) or not tasks or not all(isinstance(task, Task) for task in tasks):
        raise ValueError("tasks must be a list of tasks.task.Task, one a data draw: write [task] for a single one.")
    if isinstance(members, Member) or not members:
        raise ValueError("members must be a list of at least one Member, as members(data=1, init=3) makes it.")
    shapes = {(tuple(task.x_train.shape), task.outputs) for task in tasks}
    if len(shapes) > 1:
        raise ValueError(f"tasks must be of one shape, and x_train and the number of outputs are {sorted(shapes)}.")
    most = max(member.data for member in members)
    if most >= len(tasks):
        raise ValueError(f"members name {most + 1} data draws, and tasks has {len(tasks)}: one task a data draw.")


def check_fit(net: nn.Module, task: Task, members: Sequence[Member]) -> None:
    """``net`` as it is trained, on two points; its buffers may change.

    Raises:
        ValueError: inputs that it does not take, outputs that are not the labels', or a trainable parameter that it
            does not use.
    """
    if task.x_train.is_meta:
        return
    params = {name: parameter for name, parameter in net.named_parameters() if parameter.requires_grad}
    first = next(net.parameters())
    x = task.x_train[:2].to(first.device, first.dtype)
    shape = ", ".join(["n", *map(str, task.x_shape)])
    with torch.enable_grad(), torch.random.fork_rng([first.device] if first.is_cuda else []):
        try:
            z = net(x)
        except (RuntimeError, IndexError) as error:
            if out_of_memory(error):
                raise
            line = (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")
            raise ValueError(f"The model does not take the inputs [{shape}] of task '{task.name}': {line}.") from error
    if z.ndim != 2 or len(z) != len(x):
        raise ValueError(f"The model must map inputs [{shape}] to [n, c]; {len(x)} points gave {list(z.shape)}.")
    for member in {member.target: member for member in members}.values():
        labels = label_set(task, member.target, z.shape[1]).outputs
        if labels != z.shape[1]:
            raise ValueError(f"The model has {z.shape[1]} outputs, and task '{task.name}' has labels of {labels}.")
    unused = sorted(params.keys() - reached(z, params))
    if unused:
        raise ValueError(
            f"The model's outputs do not depend on its parameter {unused[0]}: use it in forward, remove it, or set its "
            "requires_grad to False."
        )
