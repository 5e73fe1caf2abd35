"""How a sweep chooses its points: at random, all of a grid, by Optuna, or as children of the best so far.

Each is asked for a point and told what became of it. What it was told is all its state, so that a sweep that goes on tells it
again what the trials before came to; nothing is pickled.
"""

from __future__ import annotations

import itertools
import math
from typing import Any, Protocol

import numpy as np
import optuna

from .spec import Point, Range, Spec, Value

PARENTS = 3  # of the best have children; an eighth of all, once that is more
FOUNDERS = 10  # points at random before the first child
CHANGED = 0.5  # probability that a child has another value of a setting than its parent; of one at least it has
STEPS = (-2.0, -0.3)  # log10 of the s.d. of the change, as a share of a range: children stay near or go far


class Choice(Protocol):
    """Chooses points."""

    def ask(self, number: int) -> Point | None:
        """A point for a trial of this number; None: there are no more."""

    def tell(self, point: Point, error: float) -> None:
        """What a point came to, asked for or not; infinite: it failed, or was stopped before that was known."""


def choice(spec: Spec, known: int) -> Choice:
    """The way that the sweep asks for; it will be told of so many trials that are `known` from before."""
    if spec.search == "grid":
        return Grid(spec)
    if spec.search == "optuna":
        return Optuna(spec, known)
    if spec.search == "population":
        return Population(spec)
    return Random(spec)


class Random:
    """Points at random."""

    def __init__(self, spec: Spec) -> None:
        self._spec = spec
        self._tries = 0

    def ask(self, number: int) -> Point | None:
        self._tries += 1
        return self._spec.sample(np.random.default_rng([self._spec.seed, number, self._tries]))

    def tell(self, point: Point, error: float) -> None:
        """Learns nothing."""


class Grid:
    """All combinations, the last setting varying fastest."""

    def __init__(self, spec: Spec) -> None:
        axes = [axis for axis in spec.space.values() if isinstance(axis, list)]
        self._points = [dict(zip(spec.space, values, strict=True)) for values in itertools.product(*axes)]

    def ask(self, number: int) -> Point | None:
        return self._points[number] if number < len(self._points) else None

    def tell(self, point: Point, error: float) -> None:
        """Learns nothing."""


class Optuna:
    """Optuna's tree-structured Parzen estimator."""

    def __init__(self, spec: Spec, known: int) -> None:
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        sampler = optuna.samplers.TPESampler(seed=spec.seed + known, multivariate=True, constant_liar=True)
        self._study = optuna.create_study(sampler=sampler)
        self._space = spec.space
        self._asked: list[tuple[Point, optuna.trial.Trial]] = []

    def ask(self, number: int) -> Point | None:
        trial = self._study.ask(self._distributions())
        point = {key: self._value(key, given) for key, given in trial.params.items()}
        self._asked.append((point, trial))
        return point

    def tell(self, point: Point, error: float) -> None:
        asked = next((pair for pair in self._asked if pair[0] == point), None)
        if asked is None and not math.isfinite(error):
            return
        if asked is None:
            given = {key: self._given(key, value) for key, value in point.items()}
            done = optuna.trial.create_trial(params=given, distributions=self._distributions(), value=error)
            self._study.add_trial(done)
            return
        self._asked.remove(asked)
        if math.isfinite(error):
            self._study.tell(asked[1], error)
        else:
            self._study.tell(asked[1], state=optuna.trial.TrialState.FAIL)

    def _distributions(self) -> dict[str, optuna.distributions.BaseDistribution]:
        found: dict[str, optuna.distributions.BaseDistribution] = {}
        for key, axis in self._space.items():
            if isinstance(axis, list):
                found[key] = optuna.distributions.CategoricalDistribution(range(len(axis)))
            elif axis.whole:
                found[key] = optuna.distributions.IntDistribution(int(axis.low), int(axis.high), axis.scale == "log")
            else:
                found[key] = optuna.distributions.FloatDistribution(axis.low, axis.high, axis.scale == "log")
        return found

    def _value(self, key: str, given: Any) -> Value:
        axis = self._space[key]
        return axis[given] if isinstance(axis, list) else given

    def _given(self, key: str, value: Any) -> Any:
        axis = self._space[key]
        return axis.index(value) if isinstance(axis, list) else value


class Population:
    """Children of the best points so far; whole experiments, so that no child inherits what its parent had trained.

    Tune's population-based training copies a parent's weights into a child half-way. Here a search is cheap to begin anew,
    and settings such as the size of a population cannot change half-way.
    """

    def __init__(self, spec: Spec) -> None:
        self._spec = spec
        self._known: list[tuple[float, Point]] = []
        self._tries = 0

    def ask(self, number: int) -> Point | None:
        self._tries += 1
        rng = np.random.default_rng([self._spec.seed, number, self._tries])
        if len(self._known) < FOUNDERS:
            return self._spec.sample(rng)
        best = sorted(self._known, key=lambda one: one[0])[: max(PARENTS, len(self._known) // 8)]
        parent = best[int(rng.integers(len(best)))][1]
        changed = rng.random(len(parent)) < CHANGED
        changed[rng.integers(len(parent))] = True
        step = 10 ** rng.uniform(*STEPS)
        return {
            key: _other(axis, parent[key], step, rng) if change else parent[key]
            for change, (key, axis) in zip(changed, self._spec.space.items(), strict=True)
        }

    def tell(self, point: Point, error: float) -> None:
        if math.isfinite(error):
            self._known.append((error, point))


def _other(axis: Range | list[Any], value: Any, step: float, rng: np.random.Generator) -> Value:
    """Another value: any other of a list, one near by of a range."""
    if isinstance(axis, list):
        others = [one for one in axis if one != value] or axis
        return others[int(rng.integers(len(others)))]
    return axis.at(float(np.clip(axis.share(value) + step * rng.standard_normal(), 0, 1)))
