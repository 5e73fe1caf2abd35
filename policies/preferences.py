"""Latent preference models: what evolves (`z`) and the rewards it stands for, with exact encode and decode.

`HierarchicalPreferences` (`hier`, the default): a vehicle's weights over the interpretable features are
`w_i = mu + U_g(i) + sigma * xi_i`: a population mean, the effect of its origin-destination group, and its own fixed code.
A few dozen numbers steer all vehicles together, which is what an aggregate series can teach.

`TokenPreferences` (`token`, the paper's per-vehicle path): `r_i = B z_i` with orthonormal columns B; with B the identity it
is the literal reward `table`. Independent draws of 1,557 rows average out in the aggregate: kept as reference and control.

All latents are standardised: the prior is N(0, I).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np
import scipy.cluster.vq
import scipy.linalg
import scipy.sparse
import scipy.sparse.linalg
from numpy.typing import NDArray

from ..scenarios.demand import Demand
from ..scenarios.network import RoadNetwork
from .features import FEATURES, STATIC

Array = NDArray[np.float32]
POPULATION, GROUP, INDIVIDUAL = 1.0, 0.4, 0.4  # prior s.d. of mu, of U, and the median of sigma
SIGMA_SPREAD = 0.5  # prior s.d. of log sigma
# Rewards of a driver drawn from the prior have unit variance over connections, so that lambda is in metres per s.d.
UNIT = 1.0 / np.sqrt(len(STATIC) * (POPULATION**2 + GROUP**2 + INDIVIDUAL**2))


@dataclass(frozen=True, eq=False)
class Rewards:
    """Reward of every vehicle on every connection: `static + queue_weight * log(1 + queue of the next road)`.

    A city's table takes gigabytes: it is held as factors, and made for the vehicles that are asked for.
    """

    factors: Array  # [vehicles, k]; [vehicles, connections] without a basis: the table itself
    queue_weight: Array  # [vehicles]
    basis: Array | None = None  # [k, connections]
    common: Array | None = None  # [connections], added for all vehicles

    @property
    def static(self) -> Array:
        """`[vehicles, connections]`, made anew at each call."""
        table = self.factors if self.basis is None else self.factors @ self.basis
        return table if self.common is None else table + self.common

    def take(self, rows: slice | NDArray[np.integer]) -> Rewards:
        """Those of some vehicles."""
        return Rewards(self.factors[rows], self.queue_weight[rows], self.basis, self.common)


class PreferenceModel(Protocol):
    """A decoder from latents to rewards whose encoder is its exact inverse on the decoder's range."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of one latent: `[d]`, or `[vehicles, k]` for per-vehicle tokens."""

    def decode(self, z: Array) -> Rewards: ...

    def encode(self, rewards: Rewards) -> Array: ...


def rewards_of_weights(weights: NDArray[np.floating], phi: Array) -> Rewards:
    """Rewards of feature weights `[vehicles, features]` (per s.d. of the feature) on features `[connections, static]`."""
    scaled = (weights * UNIT).astype(np.float32)
    return Rewards(scaled[:, : len(STATIC)], np.ascontiguousarray(scaled[:, len(STATIC)]), phi.T)


def od_groups(network: RoadNetwork, demand: Demand, groups: int, seed: int = 0) -> NDArray[np.int32]:
    """Group of every vehicle by where it starts and ends: k-means over (origin, destination) positions.

    Returns `[vehicles] int32` in `0..G-1` with every group occupied; G may be smaller than asked for when there are fewer
    distinct origin-destination pairs.
    """
    pairs = np.hstack([network.start_xy[demand.origin], network.end_xy[demand.destination]]).astype(np.float64)
    distinct = len(np.unique(pairs, axis=0))
    count = min(groups, distinct)
    if count <= 1:
        return np.zeros(len(demand.ids), np.int32)
    rng = np.random.default_rng(seed)
    _, label = scipy.cluster.vq.kmeans2(pairs, count, minit="++", rng=rng)
    return np.unique(label, return_inverse=True)[1].astype(np.int32)


def connection_basis(network: RoadNetwork, phi: Array, size: int, seed: int = 0) -> Array:
    """Orthonormal columns `[connections, size]`: the features first, then smooth patterns, then random ones.

    Smooth patterns are the low eigenvectors of the Laplacian of the line graph (connections that follow each other are
    neighbours), so that neighbouring connections are liked alike.
    """
    e = network.connection_count
    if not 1 <= size <= e:
        raise ValueError(f"basis size must lie in 1..{e} (connections), got {size}")
    target = network.connections[:, 1]
    order = np.arange(e)
    pairs = [
        np.stack([np.full(network.first[t + 1] - network.first[t], i), order[network.first[t] : network.first[t + 1]]])
        for i, t in enumerate(target)
    ]
    i, j = np.concatenate(pairs, axis=1) if pairs else np.zeros((2, 0), int)
    adjacency = scipy.sparse.csr_array((np.ones(i.size), (i, j)), shape=(e, e))
    laplacian = scipy.sparse.csgraph.laplacian(((adjacency + adjacency.T) > 0).astype(np.float64))
    smooth = min(size, e - 1)
    if e <= 2000:
        vectors = scipy.linalg.eigh(laplacian.toarray(), subset_by_index=[0, smooth - 1])[1]
    else:
        v0 = np.random.default_rng(seed).standard_normal(e)
        vectors = scipy.sparse.linalg.eigsh(laplacian, k=smooth, sigma=-1e-3, which="LM", v0=v0)[1]
    fill = np.random.default_rng(seed).standard_normal((e, size))
    # Rank-revealing QR drops constant or collinear features; the first `size` independent directions are kept in order.
    stacked = np.hstack([phi.astype(np.float64), vectors, fill])
    columns: list[NDArray[np.float64]] = []
    for column in stacked.T:
        rest = column.copy()
        for _ in range(2):  # twice is enough (Kahan)
            for kept in columns:
                rest -= kept * (kept @ rest)
        norm = np.linalg.norm(rest)
        if norm > 1e-6 * max(1.0, float(np.linalg.norm(column))):
            columns.append(rest / norm)
        if len(columns) == size:
            break
    return np.column_stack(columns).astype(np.float32)


class HierarchicalPreferences:
    """`w_i = mu + U_g(i) + sigma * xi_i` over the features, plus an optional taste per connection shared by all.

    The latent is `(mu [F], contrasts of U [(G-1) F], log sigma [F], taste [k])`, each in prior standard deviations. U is held
    in an orthonormal basis of the effects whose vehicle-weighted sum is zero, and codes have mean zero within each group
    and unit variance over all vehicles, so mu is the population mean and every part can be read back from rewards exactly.
    Features that are constant on a network have no effect there and are read back as zero.
    """

    def __init__(
        self,
        network: RoadNetwork,
        phi: Array,
        groups: NDArray[np.int32],
        connection_taste: int = 0,
        seed: int = 0,
    ) -> None:
        self.phi = phi
        self.groups = groups
        counts = np.bincount(groups).astype(np.float64)
        self._group_counts = counts
        full = np.linalg.qr(np.column_stack([counts, np.eye(counts.size)]))[0]
        self.contrasts = full[:, 1 : counts.size]  # [G, G-1], orthogonal to the group sizes
        self.codes = _centred_codes(groups, len(FEATURES), seed)
        self.taste_basis = np.zeros((phi.shape[0], 0), np.float32)
        rank = int(np.linalg.matrix_rank(phi))
        taste = min(connection_taste, phi.shape[0] - rank)
        if taste:
            basis = connection_basis(network, phi, rank + taste, seed)
            self.taste_basis = basis[:, rank:] * np.sqrt(phi.shape[0] / taste).astype(np.float32)

    @property
    def shape(self) -> tuple[int, ...]:
        f, g = len(FEATURES), self._group_counts.size
        return (f + (g - 1) * f + f + self.taste_basis.shape[1],)

    def split(self, z: Array) -> tuple[Array, Array, Array, Array]:
        """The parts of a latent in natural units: mu `[F]`, U `[G, F]`, sigma `[F]`, taste `[k]`."""
        f, g = len(FEATURES), self._group_counts.size
        mu, contrast, spread, taste = np.split(z, [f, g * f, g * f + f])
        u = GROUP * (self.contrasts @ contrast.reshape(g - 1, f))
        return POPULATION * mu, u, INDIVIDUAL * np.exp(SIGMA_SPREAD * spread), taste

    def weights(self, z: Array) -> Array:
        """Feature weights of every vehicle, `[vehicles, F]`, per standard deviation of the feature."""
        mu, u, sigma, _ = self.split(z)
        return (mu + u[self.groups] + sigma * self.codes).astype(np.float32)

    def decode(self, z: Array) -> Rewards:
        rewards = rewards_of_weights(self.weights(z), self.phi)
        taste = self.split(z)[3]
        return replace(rewards, common=self.taste_basis @ taste) if taste.size else rewards

    def encode(self, rewards: Rewards) -> Array:
        static = rewards.static.astype(np.float64)
        taste = np.zeros(0)
        if self.taste_basis.shape[1]:  # orthogonal to the features by construction
            scale = (self.taste_basis.astype(np.float64) ** 2).sum(axis=0)
            taste = (static.mean(axis=0) @ self.taste_basis) / scale
            static = static - self.taste_basis @ taste
        features = np.linalg.lstsq(self.phi.astype(np.float64), static.T, rcond=1e-6)[0].T
        weights = np.column_stack([features, rewards.queue_weight]) / UNIT
        mu = weights.mean(axis=0)
        u = np.stack([weights[self.groups == g].mean(axis=0) for g in range(self._group_counts.size)]) - mu
        rest = weights - mu - u[self.groups]
        norm = np.maximum((self.codes.astype(np.float64) ** 2).sum(axis=0), 1e-12)
        sigma = np.maximum((rest * self.codes).sum(axis=0) / norm, 1e-6)
        spread = np.log(sigma / INDIVIDUAL) / SIGMA_SPREAD
        spread[: len(STATIC)][np.ptp(self.phi, axis=0) < 1e-6] = 0.0
        spread[~self.codes.any(axis=0)] = 0.0  # every group is one vehicle
        contrast = self.contrasts.T @ u / GROUP
        return np.concatenate([mu / POPULATION, contrast.ravel(), spread, taste]).astype(np.float32)


def _centred_codes(groups: NDArray[np.int32], features: int, seed: int) -> Array:
    """Individual codes `[vehicles, features]` of mean zero within each group and unit variance over all vehicles."""
    codes = np.random.default_rng(seed).standard_normal((groups.size, features))
    for g in range(int(groups.max(initial=0)) + 1):
        codes[groups == g] -= codes[groups == g].mean(axis=0)
    scale = codes.std(axis=0)
    return (codes / np.where(scale > 0, scale, 1.0)).astype(np.float32)


class TokenPreferences:
    """One token per vehicle: `r_i = sqrt(E / k) B z_i` and a last entry for the queue weight (MASDiff, Eq. 2, per vehicle).

    With `size` None it is the literal table: `z_R = R`, no queue term.
    """

    def __init__(self, network: RoadNetwork, phi: Array, vehicles: int, size: int | None, seed: int = 0) -> None:
        self.vehicles = vehicles
        self.basis = None if size is None else connection_basis(network, phi, size, seed)
        self._connections = network.connection_count

    @property
    def shape(self) -> tuple[int, ...]:
        if self.basis is None:
            return (self.vehicles, self._connections)
        return (self.vehicles, self.basis.shape[1] + 1)

    def decode(self, z: Array) -> Rewards:
        if self.basis is None:
            return Rewards(np.asarray(z, np.float32), np.zeros(self.vehicles, np.float32))
        gain = np.float32(np.sqrt(self._connections / self.basis.shape[1]))
        return Rewards(gain * z[:, :-1], (UNIT * z[:, -1]).astype(np.float32), self.basis.T)

    def encode(self, rewards: Rewards) -> Array:
        if self.basis is None:
            return rewards.static
        gain = np.float32(np.sqrt(self._connections / self.basis.shape[1]))
        return np.column_stack([rewards.static @ self.basis / gain, rewards.queue_weight / np.float32(UNIT)])
