"""Times the JAX library (neural-tangents 0.6.5) on the cases of test_limits_speed.py; run by an environment of its own.

    python jax_limits.py inputs.npz outputs.npz case float32|float64

The environment: pip install neural-tangents==0.6.5 jax==0.4.38 jaxlib==0.4.38 numpy==1.26.4
"""

import os
import sys
import time

# XLA has threads of its own: one core makes them one.
os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})

import jax  # noqa: E402 - after the process was confined
import numpy as np  # noqa: E402

jax.config.update("jax_enable_x64", sys.argv[4] == "float64")
from neural_tangents import stax  # noqa: E402 - after the precision is set


def layers(case: str) -> list:
    scales = {"W_std": 2**0.5, "b_std": 0.3}
    conv = stax.Conv(8, (3, 3), padding="SAME", **scales)
    readout = stax.Dense(1, W_std=1.0, b_std=None)
    if case == "dense":
        return [stax.Dense(8, **scales), stax.Relu()] * 3 + [readout]
    if case == "flatten":
        return [conv, stax.Relu()] * 3 + [stax.Flatten(), readout]
    if case == "gap":
        return [conv, stax.Relu()] * 3 + [stax.GlobalAvgPool(), readout]
    pool = stax.AvgPool((2, 2), strides=(2, 2))
    block = [conv, stax.Relu()]
    return [*block, *block, pool, *block, pool, *block, stax.GlobalAvgPool(), readout]


def main() -> None:
    source, target, case, _ = sys.argv[1:]
    arrays = np.load(source)
    _, _, kernel_fn = stax.serial(*layers(case))
    kernel_fn = jax.jit(kernel_fn, static_argnames="get")
    x1 = arrays["x1"].astype(sys.argv[4])
    x2 = arrays["x2"].astype(sys.argv[4]) if "x2" in arrays else None
    if x1.ndim == 4:
        x1 = x1.transpose(0, 2, 3, 1)
        x2 = None if x2 is None else x2.transpose(0, 2, 3, 1)

    def run() -> tuple:
        result = kernel_fn(x1, x2, get=("nngp", "ntk"))
        return jax.block_until_ready((result.nngp, result.ntk))

    nngp, ntk = run()  # compiles
    seconds = []
    for _ in range(3):
        start = time.process_time()
        run()
        seconds.append(time.process_time() - start)
    np.savez(target, nngp=np.asarray(nngp), ntk=np.asarray(ntk), seconds=min(seconds))


main()
