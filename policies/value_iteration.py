"""Exact offline Q-learning of all vehicles at once.

Every connection of the road graph is one transition of the offline data set (MASDiff, A.1), so the fixed point that DQN
and IQL approach is exact value iteration, `Q(s, a) = r(s, a) + gamma max_a' Q(s', a')`. It is solved here for all
vehicles in one compiled call: vehicles are taken in blocks that fit the cache, one SIMD lane each, and Gauss-Seidel
sweeps stop when the Bellman residual of the block is below the tolerance.
"""

from __future__ import annotations

import numba
import numpy as np
from numpy.typing import NDArray

BLOCK = 32  # vehicles solved side by side: two AVX-512 or four AVX2 registers of float32


def value_iteration(
    rewards: NDArray[np.float32],
    first: NDArray[np.int32],
    to: NDArray[np.int32],
    allowed: NDArray[np.bool_],
    discount: float = 0.8,
    tolerance: float = 1e-4,
) -> NDArray[np.float32]:
    """Optimal Q of every vehicle on every connection.

    Args:
        rewards: `[vehicles, connections] float32`, reward on driving each connection.
        first: `[roads + 1] int32`, the connections of road s are `first[s]:first[s + 1]`.
        to: `[connections] int32`, the road each connection leads to.
        allowed: `[connections] bool`; a masked connection is never chosen, its own Q is still computed.
        discount: gamma in [0, 1); 0 gives the one-step learner of LDM.IMIT.
        tolerance: bound on `|Q - Q*|` in units of reward, as far as float32 can tell.

    Returns:
        `[vehicles, connections] float32`. A road without an allowed successor has value 0.

    Raises:
        ValueError: the discount is out of range, or a reward is not finite.

    Source: MASDiff, A.1; the paper trains a DQN per vehicle on the same transitions, which has this fixed point.
    """
    if not 0.0 <= discount < 1.0:
        raise ValueError(f"discount must lie in [0, 1), got {discount}")
    rewards = np.ascontiguousarray(rewards, dtype=np.float32)
    if not np.isfinite(rewards).all():
        raise ValueError("rewards must be finite")
    # |V_k - V*| <= gamma / (1 - gamma) * |V_k - V_{k-1}| (contraction), so stop at this step size, or, where float32
    # cannot resolve it and rounding goes round a cycle for ever, once gamma^k max|r| / (1 - gamma) is within tolerance.
    step = tolerance * (1.0 - discount) / max(discount, 1e-6)
    far = float(np.abs(rewards).max(initial=0.0)) / (1.0 - discount) / tolerance
    sweeps = 2 + int(np.log(max(far, 1.0)) / -np.log(max(discount, 1e-6)))
    return _solve(rewards, first, to, allowed, np.float32(discount), np.float32(step), sweeps)


@numba.njit(cache=True, fastmath=True, nogil=True)
def _solve(rewards, first, to, allowed, discount, step, sweeps):  # type: ignore[no-untyped-def]
    vehicles, connections = rewards.shape
    roads = first.shape[0] - 1
    q = np.empty_like(rewards)
    r = np.empty((connections, BLOCK), np.float32)
    v = np.empty((roads, BLOCK), np.float32)
    best = np.empty(BLOCK, np.float32)
    change = np.empty(BLOCK, np.float32)
    for start in range(0, vehicles, BLOCK):
        width = min(BLOCK, vehicles - start)
        r[:] = 0.0
        for b in range(width):
            for e in range(connections):
                r[e, b] = rewards[start + b, e]
        v[:] = 0.0
        for _ in range(sweeps):
            change[:] = 0.0
            for s in range(roads):
                begin, end = first[s], first[s + 1]
                some = False
                for e in range(begin, end):
                    if not allowed[e]:
                        continue
                    t = to[e]
                    if some:
                        for b in range(BLOCK):
                            best[b] = max(best[b], r[e, b] + discount * v[t, b])
                    else:
                        some = True
                        for b in range(BLOCK):
                            best[b] = r[e, b] + discount * v[t, b]
                if some:
                    for b in range(BLOCK):
                        change[b] = max(change[b], abs(best[b] - v[s, b]))
                        v[s, b] = best[b]
            if change.max() <= step:
                break
        for b in range(width):
            for e in range(connections):
                q[start + b, e] = r[e, b] + discount * v[to[e], b]
    return q


def state_values(q: NDArray[np.float32], first: NDArray[np.int32], allowed: NDArray[np.bool_]) -> NDArray[np.float32]:
    """V(s) = max over allowed actions of Q, `[vehicles, roads] float32`; 0 where no action is allowed."""
    return _values(np.ascontiguousarray(q), first, allowed)


@numba.njit(cache=True, nogil=True)
def _values(q, first, allowed):  # type: ignore[no-untyped-def]
    vehicles = q.shape[0]
    roads = first.shape[0] - 1
    v = np.zeros((vehicles, roads), np.float32)
    for i in range(vehicles):
        for s in range(roads):
            best = np.float32(-np.inf)
            for e in range(first[s], first[s + 1]):
                if allowed[e]:
                    best = max(best, q[i, e])
            if best > -np.inf:
                v[i, s] = best
    return v
