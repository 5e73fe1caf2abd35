"""Entries to roads, read from SUMO's objects, against libsumo's getter."""

from __future__ import annotations

import libsumo
import numpy as np
import pytest
from throng.scenarios.demand import Routes
from throng.scenarios.scenario import Scenario
from throng.workers import entering, libsumo_binding, native
from throng.workers.sumo import SumoRollout
from throng.workers.sumo_files import Fidelity


@pytest.mark.parametrize("fidelity", ["micro", "meso"])
def test_entries_are_those_of_the_getter(town: Scenario, shortest: Routes, fidelity: Fidelity) -> None:
    """Also where only some roads are looked at, and where some vehicles are nobody's business."""
    assert native.functions(native.VEHICLES, native.NUMBER), "the fast way is not there"
    roads = town.network.road_ids
    vehicles = {name: i for i, name in enumerate(town.demand.ids) if i % 5}
    with SumoRollout(town) as rollout:
        rollout.files.write_routes(shortest)
        options = rollout.files.options(1, fidelity, False, False)
        with libsumo_binding.simulation(options, rollout.files.directory / "sumo.log"):
            ours = entering.entering(roads, vehicles, fidelity)
            if fidelity == "micro":
                assert type(ours) is not entering.Entering
                ours._now = ours._now[:, :1]  # type: ignore[attr-defined]  # has to grow
            getter = entering.Entering(roads, vehicles)
            before: list[set[str]] = [set() for _ in roads]
            entries = 0
            for second in range(300):
                libsumo_binding.step()
                count = len(roads) if second % 3 else len(roads) // 3
                expected = []
                for road in range(count):
                    now = set(libsumo.edge.getLastStepVehicleIDs(roads[road]))
                    expected += sorted((road, vehicles[name]) for name in now - before[road] if name in vehicles)
                    before[road] = now
                for way in (ours, getter):
                    entered = way.look(count)
                    if not expected:
                        assert entered is None
                        continue
                    assert entered is not None
                    np.testing.assert_array_equal(np.stack(entered[::-1], axis=1), expected)
                entries += len(expected)
            assert entries > 500
