"""From a configuration to something that can be simulated: scenario, learner's problem, hidden truth."""

from __future__ import annotations

import copy
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ..policies.features import FEATURES, fit_scaler, static_features
from ..policies.learners import LearnerSettings
from ..policies.policy import Navigation, Navigator
from ..policies.preferences import HierarchicalPreferences, Rewards, od_groups, rewards_of_weights
from ..policies.problem import LatentSettings, Problem
from ..scenarios.demand import PublishedRoutes, Routes, load_demand
from ..scenarios.edited import Edited
from ..scenarios.errors import InputError
from ..scenarios.network import load_network
from ..scenarios.observed import Kind, Observed, load_observed
from ..scenarios.scenario import Scenario
from ..scenarios.town import write_town
from ..scenarios.truths import iid_rewards, shared_taste, structured_weights
from .config import Config, LearnerConfig, NavigationConfig
from .seeds import child_rng

TRUTH_GROUPS = 6  # origin-destination groups of a hidden truth; the learner's own grouping differs
FORCED_DRAWS = 8  # preference draws that must move at least one vehicle


@dataclass(frozen=True, eq=False)
class Case:
    """A loaded configuration: what the learner sees (`problem`), what was observed, and what stays hidden."""

    config: Config
    problem: Problem
    observed: Observed | None
    published: PublishedRoutes | None

    @property
    def scenario(self) -> Scenario:
        return self.problem.scenario


def load_case(config: Config, directory: Path) -> Case:
    """Reads all inputs and checks them; the town's files are written below `directory`.

    Raises:
        InputError: for whatever is wrong with the inputs, before any simulation.
    """
    given = config.scenario
    begin, minutes = given.begin, given.minutes
    demand_files: tuple[Path, ...]
    additional: tuple[Path, ...]
    if given.town is not None:
        town = write_town(directory, given.town.vehicles, given.town.minutes, given.town.seed)
        net, demand_files, additional = town.net, (town.trips,), ()
        begin, minutes = 0.0, town.minutes
    else:
        assert given.net is not None
        net, demand_files, additional = given.net, given.demand, given.additional
    loaded = load_demand(demand_files, load_network(net), begin, begin + 60.0 * minutes, additional, given.unreachable)
    kind: Kind = config.target.kind
    observed = None
    if config.target.observed is not None:
        observed = load_observed(config.target.observed, loaded.network, begin, minutes)
        kind = observed.kind
    elif config.target.truth == "published" and (loaded.published is None or "" in loaded.published.edges):
        raise InputError(
            f"{', '.join(str(path) for path in demand_files)}: target.truth: published needs a route for every "
            "vehicle, and there are bare trips; give target.observed, or set target.truth: structured"
        )
    scenario = Scenario(
        name=config.name,
        network=loaded.network,
        demand=loaded.demand,
        infrastructure=loaded.infrastructure,
        begin=begin,
        minutes=minutes,
        step_length=given.step_length,
        options=given.options,
        observe_speed=kind != "queue",
        lanes=given.lanes,
    )
    latent = config.latent
    problem = Problem(
        scenario,
        fit_scaler(loaded.network),
        LatentSettings(latent.kind, latent.groups, latent.connection_taste, latent.tokens),
        _navigation(config.navigation),
        _learner(config.learner),
    )
    _require_choice(problem)
    return Case(config, problem, observed, loaded.published)


def _navigation(given: NavigationConfig) -> Navigation:
    return Navigation(given.router, given.heuristic, given.lambda_metres)


def _learner(given: LearnerConfig) -> LearnerSettings:
    return LearnerSettings(**given.model_dump())


def _require_choice(problem: Problem) -> None:
    """Refuses a case in which no preference can change any route."""
    scenario = problem.scenario
    model = HierarchicalPreferences(
        scenario.network, static_features(scenario.network, problem.scaler), np.zeros(len(scenario.demand), np.int32)
    )
    navigator = Navigator(scenario.network, scenario.demand, scenario.begin, Navigation())
    navigator.calibrate(model)
    rng = child_rng(0, "forced")
    empty = np.zeros((scenario.network.road_count, 1), np.float32)
    reference: NDArray[np.int32] | None = None
    for _ in range(FORCED_DRAWS):
        roads = navigator.routes(model.decode(rng.standard_normal(model.shape, dtype=np.float32)), empty).roads
        if reference is not None and not np.array_equal(roads, reference):
            return
        reference = roads
    raise InputError(
        f"{scenario.network.path}: every vehicle has one sensible route only, so there is nothing to learn; "
        "use a network and trips with alternatives"
    )


class Truth:
    """The hidden drivers of a synthetic study. Its own model of people: other groups and codes than the learner's."""

    def __init__(self, case: Case) -> None:
        self._case = case
        self._edited: Edited | None = None
        problem, network = case.problem, case.scenario.network
        self._seed = case.config.target.truth_seed
        self._phi = static_features(network, problem.scaler)
        self._groups = od_groups(network, case.scenario.demand, TRUTH_GROUPS, seed=self._seed + 1)
        given = case.config.target
        demand, begin = case.scenario.demand, case.scenario.begin
        navigation = problem.navigation if given.navigation is None else _navigation(given.navigation)
        learner = problem.learner if given.learner is None else _learner(given.learner)
        self._navigator = Navigator(network, demand, begin, navigation, learner)
        self._navigator.calibrate(HierarchicalPreferences(network, self._phi, self._groups))

    def rewards(self, individuals: int = 0) -> Rewards:
        """Rewards of all hidden drivers; another `individuals` puts other people into the same population."""
        demand, network = self._case.scenario.demand, self._case.scenario.network
        edited = self._edited
        if self._case.config.target.truth == "iid":
            table = iid_rewards(len(demand), network.connection_count, self._seed + 7919 * individuals)
            if edited is not None:
                new = iid_rewards(len(table), len(self._phi), self._seed + 7919 * individuals + 1)
                table = self._carried(edited, table, new)[edited.source]
            return Rewards(table, np.zeros(len(table), np.float32))
        weights = structured_weights(self._groups, len(FEATURES), self._seed, individuals)
        rewards = rewards_of_weights(weights if edited is None else weights[edited.source], self._phi)
        if self._case.config.target.truth == "taste":
            taste = shared_taste(network.connection_count, self._seed)[None]
            if edited is not None:
                taste = self._carried(edited, taste, shared_taste(len(self._phi), self._seed + 1)[None])
            rewards = replace(rewards, common=taste[0])
        return rewards

    def under(self, edited: Edited) -> Truth:
        """The same drivers on an edited network; a copy of a vehicle wants what its original wants."""
        scenario, own = edited.scenario, self._navigator
        other = copy.copy(self)
        other._edited = edited
        other._phi = static_features(scenario.network, self._case.problem.scaler)
        other._navigator = Navigator(
            scenario.network, scenario.demand, scenario.begin, own.navigation, own.settings, own.bias_scale
        )
        return other

    def _carried(self, edited: Edited, table: NDArray[np.float32], fresh: NDArray[np.float32]) -> NDArray[np.float32]:
        """What was drawn for each connection `[rows, connections]`, on the edited network; new connections take `fresh`."""
        start, end = edited.kept[edited.scenario.network.connections].T
        row = np.where((start >= 0) & (end >= 0), self._case.scenario.network.find_connections(start, end), -1)
        return np.where(row >= 0, table[:, row], fresh)

    def routes(self, queue: NDArray[np.float32], individuals: int = 0) -> Routes:
        """What they drive when they expect the traffic state `queue [roads, minutes]`."""
        return self._navigator.routes(self.rewards(individuals), queue)
