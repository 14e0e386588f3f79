"""Random streams that belong to an identity, never to a worker.

Two kinds. `generator` gives a NumPy stream for one purpose and one identity (an epoch, a pool).
`cell_keys` with `normals` and `uniforms` give counter-based numbers that are a pure function of
(seed, purpose, cell), so a cell is the same whichever worker, part or minibatch holds it.
"""

import hashlib
import math
from typing import no_type_check

import numba
import numpy as np
from jaxtyping import Float32, Float64, Int64, UInt64
from numpy import ndarray

_GOLDEN = 0x9E3779B97F4A7C15
_MASK64 = 0xFFFFFFFFFFFFFFFF


def generator(seed: int, purpose: str, *ids: int) -> np.random.Generator:
    """Independent random stream for one purpose and one identity.

    Equal arguments give equal streams on every host, whatever the world size or start order;
    arguments that differ in any way (one more id of 0, too) give unrelated streams.

    >>> int(generator(7, "noise", 3).integers(9)) == int(generator(7, "noise", 3).integers(9))
    True
    """
    # Hashed, since NumPy pads a list of integers with zeros and joins their 32-bit words.
    text = f"{seed},{purpose_tag(purpose)},{[int(i) for i in ids]}"
    entropy = hashlib.blake2b(text.encode(), digest_size=16).digest()
    return np.random.default_rng(int.from_bytes(entropy, "big"))


def purpose_tag(purpose: str) -> int:
    """64-bit tag of a purpose, stable across processes and Python versions."""
    return int.from_bytes(hashlib.blake2b(purpose.encode(), digest_size=8).digest(), "big")


def stream_seed(seed: int, purpose: str, *ids: int) -> int:
    """63-bit seed for libraries that take one integer (torch, scikit-learn via modulo)."""
    return int(generator(seed, purpose, *ids).integers(0, 2**63 - 1))


def cell_keys(
    seed: int, purpose: str, condition: int, index: Int64[ndarray, " cell"]
) -> UInt64[ndarray, " cell"]:
    """One 64-bit key per cell from (seed, purpose, condition identity, index in the condition).

    Args:
        seed: seed of the plan.
        purpose: what the numbers are for; other purposes give unrelated keys.
        condition: identity of the condition, any integer below 2**64 (a hash, not a position).
        index: 0-based index of each cell within its condition.
    """
    base = np.uint64((seed ^ purpose_tag(purpose)) & _MASK64)
    start = _mix(_mix(np.array([base])) ^ np.uint64(condition & _MASK64))
    keys: np.ndarray = _mix(start + index.astype(np.uint64) * np.uint64(_GOLDEN))
    return keys


def normals(keys: UInt64[ndarray, " cell"], n: int) -> Float32[ndarray, "cell n"]:
    """`n` standard normal numbers per key (Box-Muller on a SplitMix64 counter)."""
    out = np.empty((keys.size, n), dtype=np.float32)
    _fill_normals(keys, out)
    return out


def uniforms(keys: UInt64[ndarray, " cell"], n: int) -> Float64[ndarray, "cell n"]:
    """`n` uniform numbers in [0, 1) per key, 53 bits each."""
    out = np.empty((keys.size, n), dtype=np.float64)
    _fill_uniforms(keys, out)
    return out


def _mix(x: UInt64[ndarray, " cell"]) -> UInt64[ndarray, " cell"]:
    """SplitMix64 finaliser: every input bit reaches every output bit."""
    with np.errstate(over="ignore"):
        x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    out: np.ndarray = x ^ (x >> np.uint64(31))
    return out


# no_type_check: numba cannot compile the wrapper that the shape checks of the tests put around
# annotated functions (jaxtyping 0.3).
@numba.njit(cache=True, nogil=True)
@no_type_check
def counter_uniform(key: np.uint64, counter: np.uint64) -> float:
    """The uniform number in [0, 1) at place `counter` of the stream `key` (for use in kernels)."""
    x = key + (counter + np.uint64(1)) * np.uint64(0x9E3779B97F4A7C15)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    x = x ^ (x >> np.uint64(31))
    return np.float64(x >> np.uint64(11)) * (1.0 / 9007199254740992.0)


@numba.njit(cache=True, nogil=True)
@no_type_check
def _fill_uniforms(keys: np.ndarray, out: np.ndarray) -> None:
    for i in range(out.shape[0]):
        for j in range(out.shape[1]):
            out[i, j] = counter_uniform(keys[i], np.uint64(j))


@numba.njit(cache=True, nogil=True)
@no_type_check
def _fill_normals(keys: np.ndarray, out: np.ndarray) -> None:
    n = out.shape[1]
    for i in range(out.shape[0]):
        for j in range(0, n, 2):
            u = 1.0 - counter_uniform(keys[i], np.uint64(j))  # in (0, 1]: the log stays finite
            v = counter_uniform(keys[i], np.uint64(j + 1))
            radius = math.sqrt(-2.0 * math.log(u))
            out[i, j] = radius * math.cos(2.0 * math.pi * v)
            if j + 1 < n:
                out[i, j + 1] = radius * math.sin(2.0 * math.pi * v)
