"""Settings of a trainer, each refused in one sentence that names it."""

from __future__ import annotations

import math
from typing import Any

import numpy as np


def check_richness(value: Any) -> None:
    numeric = isinstance(value, int | float) and not isinstance(value, bool)
    if value != "ntk" and not (numeric and np.isfinite(value) and value > 0):
        raise ValueError(f"trainer.richness must be ntk or a positive number, not {value!r}.")


def check_step(step: float, constant: bool, accelerated: bool) -> None:
    check_number("step", step, "a positive number", 0, math.inf)
    if not constant and step >= 4:
        raise ValueError(
            f"trainer.step must lie between 0 and 4 (2 is the edge of stability) where the steps adapt, not {step}."
        )
    if accelerated and step > 4 / 3:
        raise ValueError(f"trainer.step must be at most 4/3 with trainer.accelerated=true, not {step}.")


def check_count(name: str, value: Any, least: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise ValueError(f"trainer.{name} must be a whole number of at least {least}, not {value!r}.")


def check_flag(name: str, value: Any) -> None:
    if not isinstance(value, bool):  # the words no and off are texts to Hydra, and true to Python
        raise ValueError(f"trainer.{name} must be true or false, not {value!r}.")


def check_number(name: str, value: Any, meaning: str, low: float, high: float, low_too: bool = False) -> None:
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if not number or not (low < value < high or (low_too and value == low)):
        raise ValueError(f"trainer.{name} must be {meaning}, not {value!r}.")
