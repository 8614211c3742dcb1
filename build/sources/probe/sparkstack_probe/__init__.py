"""Memory bandwidth of this machine and of its GPUs, through two small libraries and ctypes."""

from __future__ import annotations

import ctypes
import os
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

__version__ = "0.1.0"

KERNELS = ("read", "write", "copy")
MATRIX_ORDER = 4096
_HERE = Path(__file__).resolve().parent


class ProbeError(Exception):
    """The libraries say that a measurement cannot be made."""


def default_threads() -> int:
    """Return how many CPUs this process may use."""
    return len(os.sched_getaffinity(0))


def figure(amount: float, seconds: Sequence[float]) -> dict[str, float]:
    """Return ``amount`` (bytes or operations) a second in units of 10^9: median, slowest, fastest, and their spread.

    The spread is (fastest - slowest) / median.
    """
    rates = sorted(amount / second / 1e9 for second in seconds)
    middle = statistics.median(rates)
    named = {"median": middle, "slowest": rates[0], "fastest": rates[-1], "spread": (rates[-1] - rates[0]) / middle}
    return {name: round(value, 3) for name, value in named.items()}


def memory(size: int, threads: int, repeats: int) -> dict[str, Any]:
    """Measure main memory with arrays of ``size`` bytes; GB/s for read, write and copy (a copy counts twice)."""
    library = ctypes.CDLL(str(_HERE / "libprobe_memory.so"))
    library.sparkstack_memory.restype = ctypes.c_uint64
    library.sparkstack_memory.argtypes = [ctypes.c_int, ctypes.c_uint64, ctypes.c_int, ctypes.c_int, ctypes.c_void_p]
    rates = {}
    for number, kernel in enumerate(KERNELS):
        seconds = (ctypes.c_double * repeats)()
        touched = library.sparkstack_memory(number, size, threads, repeats, seconds)
        if not touched:
            raise ProbeError(f"no memory for two arrays of {size} bytes, or fewer than 64 bytes a thread")
        rates[kernel] = figure(touched * (2 if kernel == "copy" else 1), seconds)
    return {"unit": "GB/s", "size": size, "threads": threads, "repeats": repeats, **rates}


def devices(size: int, repeats: int) -> dict[str, Any]:
    """Measure every GPU: copy within its memory in GB/s, a float32 matrix product in GFLOP/s.

    Without device code in this wheel, a driver or a GPU, ``found`` is empty and ``reason`` says why.
    """
    path = _HERE / "libprobe_device.so"
    if not path.is_file():
        return {"found": [], "reason": "this wheel was built without device code"}
    library = _device_library(path)
    count = library.sparkstack_device_count()
    if count <= 0:
        reason = library.sparkstack_device_error(-count).decode() if count else "no GPU"
        return {"found": [], "reason": reason}
    return {"found": [_device(library, number, size, repeats) for number in range(count)]}


def _device_library(path: Path) -> ctypes.CDLL:
    library = ctypes.CDLL(str(path))
    library.sparkstack_device_error.restype = ctypes.c_char_p
    library.sparkstack_device_copy.argtypes = [ctypes.c_int, ctypes.c_uint64, ctypes.c_int, ctypes.c_void_p]
    library.sparkstack_device_product.argtypes = [ctypes.c_int] * 3 + [ctypes.c_void_p] * 2
    return library


def _device(library: ctypes.CDLL, number: int, size: int, repeats: int) -> dict[str, Any]:
    def check(error: int) -> None:
        if error:
            raise ProbeError(f"GPU {number}: {library.sparkstack_device_error(error).decode()}")

    name, capability = ctypes.create_string_buffer(256), (ctypes.c_int * 2)()
    check(library.sparkstack_device_name(number, name, capability))
    copies, products = (ctypes.c_double * repeats)(), (ctypes.c_double * repeats)()
    worst = ctypes.c_double()
    whole = size // 16 * 16
    check(library.sparkstack_device_copy(number, whole, repeats, copies))
    check(library.sparkstack_device_product(number, MATRIX_ORDER, repeats, products, ctypes.byref(worst)))
    return {
        "name": name.value.decode(),
        "capability": f"{capability[0]}.{capability[1]}",
        "copy": {"unit": "GB/s", "size": whole, **figure(2 * whole, copies)},
        "product": {
            "unit": "GFLOP/s",
            "order": MATRIX_ORDER,
            "deviation": worst.value,
            **figure(2 * MATRIX_ORDER**3, products),
        },
    }
