"""Everything the learners need, in one picklable description that builds the same objects in every process."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from ..scenarios.scenario import Scenario
from .features import FeatureScaler, static_features
from .learners import EXACT, LearnerSettings
from .policy import Navigation, Navigator
from .preferences import HierarchicalPreferences, PreferenceModel, TokenPreferences, od_groups


@dataclass(frozen=True)
class LatentSettings:
    """Which preference model, and how large."""

    kind: Literal["hier", "token", "table"] = "hier"
    groups: int = 8  # hier: origin-destination groups
    connection_taste: int = 0  # hier: shared tastes per connection (smooth patterns first)
    tokens: int = 16  # token: numbers per vehicle
    seed: int = 0  # of the individual codes and the group clustering


@dataclass(frozen=True, eq=False)
class Problem:
    """A scenario with the way its drivers are modelled."""

    scenario: Scenario
    scaler: FeatureScaler
    latent: LatentSettings
    navigation: Navigation
    learner: LearnerSettings = EXACT

    def preference_model(self) -> PreferenceModel:
        network, demand, latent = self.scenario.network, self.scenario.demand, self.latent
        phi = static_features(network, self.scaler)
        if latent.kind == "hier":
            groups = od_groups(network, demand, latent.groups, latent.seed)
            return HierarchicalPreferences(network, phi, groups, latent.connection_taste, latent.seed)
        size = latent.tokens if latent.kind == "token" else None
        return TokenPreferences(network, phi, len(demand.ids), size, latent.seed)

    def navigator(self, model: PreferenceModel) -> Navigator:
        scenario = self.scenario
        navigator = Navigator(scenario.network, scenario.demand, scenario.begin, self.navigation, self.learner)
        navigator.calibrate(model, self.latent.seed)
        return navigator

    def trips(self) -> NDArray[np.float32]:
        """What a token knows of its vehicle: origin and destination (standardised) and departure, `[vehicles, 5]`."""
        network, demand = self.scenario.network, self.scenario.demand
        where = np.hstack([network.start_xy[demand.origin], network.end_xy[demand.destination]])
        where = (where - where.mean(axis=0)) / np.maximum(where.std(axis=0), 1e-6)
        when = (demand.depart - self.scenario.begin) / (60.0 * self.scenario.minutes)
        return np.column_stack([where, when]).astype(np.float32)
