"""Exact offline Q-learning of all vehicles at once.

Every connection of the road graph is one transition of the offline data set (MASDiff, A.1), so the fixed point that DQN
and IQL approach is exact value iteration, `Q(s, a) = r(s, a) + gamma max_a' Q(s', a')`. It is solved here for all
vehicles in one compiled call: vehicles are taken in blocks that fit the cache, one SIMD lane each, and Gauss-Seidel
sweeps stop when the Bellman residual of the block is below the tolerance.

`soft_value_iteration` is the same with log-sum-exp in place of the maximum: the recursive logit of route choice.
"""

from __future__ import annotations

import numba
import numpy as np
from numpy.typing import NDArray

# Vehicles solved side by side: they share what it costs to enter the loops of a connection; more of them leave the cache.
BLOCK = 128


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
    rewards = np.ascontiguousarray(rewards, dtype=np.float32)
    step, sweeps = _stop(rewards, discount, tolerance)
    return _solve(rewards, first, to, allowed, np.float32(discount), np.float32(step), sweeps)


def soft_value_iteration(
    rewards: NDArray[np.float32],
    first: NDArray[np.int32],
    to: NDArray[np.int32],
    allowed: NDArray[np.bool_],
    discount: float = 0.8,
    temperature: float = 0.2,
    tolerance: float = 1e-4,
) -> NDArray[np.float32]:
    """Entropy-regularised Q: `Q(s, a) = r(s, a) + gamma V(s')` with `V(s) = T log sum over allowed a of exp(Q(s, a) / T)`.

    The policy `pi(a | s) = exp((Q(s, a) - V(s)) / T)` is the recursive logit model of route choice (Fosgerau, Frejinger and
    Karlstroem 2013), discounted; T towards 0 gives value iteration. `V - Q = -T log pi(a | s)` is never negative, so
    Dijkstra of the `regret` router is exact with it, too: it minimises metres less lambda T times the log-likelihood of
    the route, and with a large lambda it finds the most likely route.

    Args:
        temperature: T > 0, in units of reward. The others and what is returned are those of `value_iteration`; a road
            without an allowed successor has value 0.

    Raises:
        ValueError: the discount or the temperature is out of range, or a reward is not finite.
    """
    if not 0.0 < temperature < np.inf:
        raise ValueError(f"temperature must be positive, got {temperature}")
    rewards = np.ascontiguousarray(rewards, dtype=np.float32)
    widest = max(int(np.diff(first).max(initial=0)), 1)
    step, sweeps = _stop(rewards, discount, tolerance, temperature * float(np.log(widest)))
    soft = np.float32(temperature)
    return _solve_soft(rewards, first, to, allowed, np.float32(discount), soft, np.float32(step), sweeps)


def _stop(rewards: NDArray[np.float32], discount: float, tolerance: float, bonus: float = 0.0) -> tuple[float, int]:
    """The step size at which Q is within the tolerance, and the most sweeps it can take; `bonus` is what a step can add to
    its reward."""
    if not 0.0 <= discount < 1.0:
        raise ValueError(f"discount must lie in [0, 1), got {discount}")
    largest = max(float(rewards.max(initial=0.0)), -float(rewards.min(initial=0.0)))  # NaN where one is NaN
    if not np.isfinite(largest):
        raise ValueError("rewards must be finite")
    # |V_k - V*| <= gamma / (1 - gamma) * |V_k - V_{k-1}| (contraction), so stop at this step size, or, where float32
    # cannot resolve it and rounding goes round a cycle for ever, once gamma^k max|r| / (1 - gamma) is within tolerance.
    step = tolerance * (1.0 - discount) / max(discount, 1e-6)
    far = (largest + bonus) / (1.0 - discount) / tolerance
    return step, 2 + int(np.log(max(far, 1.0)) / -np.log(max(discount, 1e-6)))


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


@numba.njit(cache=True, fastmath=True, nogil=True)
def _solve_soft(rewards, first, to, allowed, discount, temperature, step, sweeps):  # type: ignore[no-untyped-def]
    vehicles, connections = rewards.shape
    roads = first.shape[0] - 1
    q = np.empty_like(rewards)
    r = np.empty((connections, BLOCK), np.float32)
    v = np.empty((roads, BLOCK), np.float32)
    best = np.empty(BLOCK, np.float32)
    total = np.empty(BLOCK, np.float32)
    change = np.empty(BLOCK, np.float32)
    cold = np.float32(1.0) / temperature
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
                some = False
                for e in range(first[s], first[s + 1]):
                    if not allowed[e]:
                        continue
                    t = to[e]
                    for b in range(BLOCK):
                        one = r[e, b] + discount * v[t, b]
                        best[b] = max(best[b], one) if some else one
                    some = True
                if not some:
                    continue
                total[:] = 0.0
                for e in range(first[s], first[s + 1]):
                    if allowed[e]:
                        t = to[e]
                        for b in range(BLOCK):
                            total[b] += np.exp((r[e, b] + discount * v[t, b] - best[b]) * cold)
                for b in range(BLOCK):
                    best[b] += temperature * np.log(total[b])
                    change[b] = max(change[b], abs(best[b] - v[s, b]))
                    v[s, b] = best[b]
            if change.max() <= step:
                break
        for b in range(width):
            for e in range(connections):
                q[start + b, e] = r[e, b] + discount * v[to[e], b]
    return q


def state_values(
    q: NDArray[np.float32], first: NDArray[np.int32], allowed: NDArray[np.bool_], temperature: float = 0.0
) -> NDArray[np.float32]:
    """V(s) over allowed actions, `[vehicles, roads] float32`; 0 where no action is allowed.

    The maximum of Q at temperature 0, `T log sum exp(Q / T)` at temperature T.
    """
    return _values(np.ascontiguousarray(q), first, allowed, np.float32(temperature))


@numba.njit(cache=True, nogil=True)
def _values(q, first, allowed, temperature):  # type: ignore[no-untyped-def]
    vehicles = q.shape[0]
    roads = first.shape[0] - 1
    v = np.zeros((vehicles, roads), np.float32)
    for i in range(vehicles):
        for s in range(roads):
            best = np.float32(-np.inf)
            for e in range(first[s], first[s + 1]):
                if allowed[e]:
                    best = max(best, q[i, e])
            if best == -np.inf:
                continue
            v[i, s] = best
            if temperature > 0:
                total = np.float32(0.0)
                for e in range(first[s], first[s + 1]):
                    if allowed[e]:
                        total += np.exp((q[i, e] - best) / temperature)
                v[i, s] += temperature * np.log(total)
    return v
