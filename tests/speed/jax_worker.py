"""Runs in an environment with neural-tangents: computes a kernel once, then again for each line that it reads.

Its peak, without compilation, is measured as ``ntk_cases.report_peak`` measures it.
"""

import ctypes
import json
import sys
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import neural_tangents as nt
import numpy as np
from jax._src import source_info_util

# The release 0.6.5 looks for these where JAX 0.4.38 no longer has them; the structured implementation needs them.
jax.interpreters.ad.source_info_util = source_info_util
jax.interpreters.ad.config = jax.config


def mlp(params, x):
    for i in range(0, len(params), 2):
        x = x @ params[i] + params[i + 1]
        x = jax.nn.relu(x) if i + 2 < len(params) else x
    return x


def cnn(params, x):  # [n, height, width, channels]
    for i in range(0, len(params) - 2, 2):
        x = jax.lax.conv_general_dilated(x, params[i], (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))
        x = jax.nn.relu(x + params[i + 1])
    return x.mean((1, 2)) @ params[-2] + params[-1]


def memory(field: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * int(next(line for line in lines if line.startswith(field)).split()[1])


def main() -> None:
    path, implementation = sys.argv[1], int(sys.argv[2])
    with np.load(path) as arrays:
        kind, x = str(arrays["kind"]), arrays["x"]
        params = [jnp.asarray(arrays[f"p{i}"].T) for i in range(len(arrays.files) - 2)]  # inputs first, outputs last
    if kind == "cnn":
        x = np.transpose(x, (0, 3, 2, 1))  # .T turned the filters' axes as well
    function = {"mlp": mlp, "cnn": cnn}[kind]
    kernel_fn = nt.empirical_ntk_fn(function, trace_axes=(), vmap_axes=0, implementation=implementation)
    x = jnp.asarray(x)
    kernel_fn = jax.jit(kernel_fn, static_argnums=(1,))
    kernel_fn(x[:8], None, params).block_until_ready()  # loads code
    compiled = kernel_fn.lower(x, None, params).compile()
    ctypes.CDLL(None).malloc_trim(0)
    before = memory("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # forget the peak so far
    found = compiled(x, params).block_until_ready()  # the first: some buffers are kept for the next
    peak = memory("VmHWM") - before
    np.save(path + ".kernel.npy", np.asarray(found))
    del found
    print(json.dumps({"kernel": path + ".kernel.npy", "peak_bytes": peak}), flush=True)
    for _ in sys.stdin:
        start = time.process_time()
        compiled(x, params).block_until_ready()
        print(json.dumps({"seconds": time.process_time() - start}), flush=True)


main()
