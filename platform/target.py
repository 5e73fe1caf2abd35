"""What a run is judged by: the observed macro series, and errors of simulated traffic against it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from ..scenarios.macro import Macro, errors, largest_functional_cluster
from ..scenarios.network import RoadNetwork
from ..workers.sumo import GiveUp

Array = NDArray[np.float32]
UNITS = {"queue": "vehicles", "speed": "m/s", "count": "vehicles/min", "lcc": "share of roads"}


@dataclass(frozen=True, eq=False)
class Target:
    """An observed series X*.

    `values` is `[roads, minutes]` (queue, speed, count) or `[minutes]` (lcc); NaN where nothing was observed.
    """

    kind: Literal["queue", "speed", "count", "lcc"]
    values: Array
    network: RoadNetwork
    reference_speed: Array | None = None  # lcc: [roads] m/s, frozen before the search
    functional_speed: float = 0.5  # lcc: share of the reference speed
    connectivity: Literal["weak", "strong"] = "weak"

    @property
    def by_road(self) -> bool:
        return self.values.ndim == 2

    @property
    def unit(self) -> str:
        return UNITS[self.kind]

    def quantity(self, macro: Macro) -> Array:
        """The observed quantity in simulated traffic, of the shape of `values`.

        A road on which nobody drove has its speed limit: as free as can be.
        """
        if self.kind == "queue":
            return macro.queue
        if macro.speed is None or macro.count is None:
            raise ValueError("the simulation recorded no speeds; set Scenario.observe_speed")
        if self.kind == "count":
            return macro.count
        if self.kind == "speed":
            return np.where(np.isnan(macro.speed), self.network.speed[:, None], macro.speed).astype(np.float32)
        assert self.reference_speed is not None
        return largest_functional_cluster(
            macro.speed, self.reference_speed, self.network, self.functional_speed, self.connectivity
        )

    def rmse(self, quantity: Array) -> float:
        """Root mean squared error over the observed cells, in the target's unit (Eq. 1, per cell)."""
        return float(np.sqrt(np.nanmean(np.square(quantity - self.values))))

    def scores(self, quantity: Array) -> dict[str, float]:
        """RMSE, MAE and, for series by road, the RMSE of road means and the correlation over the 50 busiest roads."""
        if self.by_road:
            return errors(quantity, self.values)
        difference = quantity - self.values
        return {"rmse": self.rmse(quantity), "mae": float(np.nanmean(np.abs(difference)))}

    def give_up(self, worst: float, vehicles: int) -> GiveUp | None:
        """Break a simulation off when its error is bound to exceed `worst`, or a twentieth of the vehicles teleported."""
        if self.kind != "queue":
            return None
        observed = int((~np.isnan(self.values)).sum())
        return GiveUp(self.values, worst**2 * observed, max(20, vehicles // 20))
