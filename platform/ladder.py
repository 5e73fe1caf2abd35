"""How candidates are judged: a ladder of simulations from cheap to full, and what it teaches on the way.

A candidate is simulated mesoscopically, then (if asked for) without driver noise, then in full on a fresh seed; the better
part of each rung climbs to the next. What was simulated teaches how cheap results differ from full ones (`Correction`), how
flows become queues (`FlowSurrogate`, which screens candidates before any simulation), and how latents move the series
(`EnsembleKalman`, which guides mutations).
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from ..policies.ensemble_kalman import EnsembleKalman
from ..policies.fidelity import Correction
from ..policies.screening import FlowSurrogate
from ..scenarios.errors import InputError
from ..workers.simulator import Job
from ..workers.sumo_files import Fidelity
from .config import Rung, SearchConfig
from .evolution import Individual
from .seeds import child_seed
from .simulations import Outcome, Simulations
from .target import Target

Array = NDArray[np.float32]
COST = {"meso": 0.125, "quiet": 1.0, "micro": 1.0}  # micro-equivalent simulations; bench/ measures the mesoscopic one
ORDER: tuple[Rung, ...] = ("meso", "quiet", "micro")
SURROGATE_SAMPLES = 160  # simulations the flow surrogate learns from
GUIDE_SAMPLES, GUIDE_BYTES = 600, 2**26  # simulations that guidance learns from, and the memory of their latents


def guide_samples(shape: tuple[int, ...]) -> int:
    """How many simulations of latents of this shape guidance learns from."""
    return min(GUIDE_SAMPLES, GUIDE_BYTES // (4 * math.prod(shape)))


class Ladder:
    """Simulates and judges the candidates of a search."""

    def __init__(
        self,
        settings: SearchConfig,
        seed: int,
        target: Target,
        vehicles: int,
        guides: int,
        simulations: Simulations,
        show: Callable[[float], None],
    ) -> None:
        """`guides` is how many simulations guidance learns from; `show` hears of the micro-equivalents under way."""
        self.settings = settings
        self.seed = seed
        self.target = target
        self.vehicles = vehicles
        self.simulations = simulations
        self.spent = 0.0  # micro-equivalent simulations
        self.counts = dict.fromkeys(ORDER, 0)
        self.correction: dict[Rung, Correction] = {rung: Correction() for rung in settings.ladder[:-1]}
        self.archive: list[tuple[Array, Array, int]] = []  # flows, quantity, rung: what the surrogate learns from
        self.guides: list[tuple[Array, Array, int]] = []  # latent, quantity, rung: what guidance learns from
        self.traffic: dict[str, Array] = {}  # this generation's simulated queues by key, for the store
        self.failure = ""  # why a simulation failed last
        self._guides = guides
        self._show = show
        self._generation = 0
        self._hopeless: float | None = None

    def begin(self, generation: int, history: list[dict[str, float]]) -> None:
        """A new generation: what is simulated from now on belongs to it.

        An error beyond half again the first generation's median is hopeless: such a simulation is given up.
        """
        self._generation = generation
        self._hopeless = 1.5 * history[0]["median"] if history else None
        self.traffic = {}

    # -- sizes and costs ----------------------------------------------------------------------------------------------

    def cost(self, count: int) -> float:
        """Micro-equivalents that `count` candidates cost."""
        return sum(COST[rung] * n for rung, n in zip(self.settings.ladder, self.sizes(count), strict=True))

    def sizes(self, count: int) -> list[int]:
        """How many of `count` candidates are simulated on each rung."""
        sizes = [count]
        for _ in self.settings.ladder[1:]:
            sizes.append(max(1, math.ceil(self.settings.promote * sizes[-1])))
        return sizes

    # -- simulating ---------------------------------------------------------------------------------------------------

    def evaluate(self, individuals: list[Individual], phase: str) -> list[Individual]:
        """Takes candidates up the ladder; those that failed to simulate are dropped, not weighted."""
        if self.target.by_road:
            missing = [one for one in individuals if one.flows is None]
            flows = self.simulations.pool.flows((one.z, one.tau.astype(np.float32)) for one in missing)
            for one, flow in zip(missing, flows, strict=True):
                one.flows = flow.astype(np.float16)
        climbing = individuals
        sizes = self.sizes(len(individuals))
        for rung, size in zip(self.settings.ladder, sizes, strict=True):
            climbing = (
                sorted(climbing, key=lambda one: (one.estimate, one.id))[:size]
                if rung != self.settings.ladder[0]
                else climbing
            )
            self.simulate(climbing, rung, phase, fresh=rung == "micro")
            climbing = [one for one in climbing if math.isfinite(one.estimate)]
        survivors = [one for one in individuals if math.isfinite(one.estimate)]
        if not survivors:
            raise InputError(
                f"all {len(individuals)} simulations of generation {self._generation} failed, the last with: "
                f"{self.failure}. Mend that (a slow machine: workers.deadline) and run the same command again"
            )
        return survivors

    def simulate(self, individuals: list[Individual], rung: Rung, phase: str, fresh: bool) -> None:
        """Simulates candidates on one rung; with `fresh`, each on a seed of its own."""
        generation = self._generation
        # Common random numbers within a generation; elites get a seed of their own each time.
        seed = child_seed(self.seed, "simulate", generation, phase, rung)
        worst = self._hopeless
        jobs = {}
        for one in individuals:
            key = f"g{generation:04d}-{phase}-{rung}-i{one.id:06d}"
            give_up = None if rung == "meso" or worst is None else self.target.give_up(worst, self.vehicles)
            own = child_seed(self.seed, "fresh", generation, phase, one.id) if fresh else seed
            fidelity: Fidelity = "meso" if rung == "meso" else "micro"
            tau = one.tau.astype(np.float32)
            jobs[key] = (
                one,
                Job(key, own, fidelity, rung != "micro", one.z, tau, give_up=give_up),
            )
        outcomes = {}
        for key, outcome in self.simulations.stream(job for _, job in jobs.values()):
            outcomes[key] = outcome
            self._show(len(outcomes) * COST[rung])
        for key, (one, job) in jobs.items():  # in the order of asking: results do not depend on who was first
            self._record(one, rung, job.seed, key, outcomes[key])
        self._spend(rung, len(individuals))

    def line_5(self, population: list[Individual]) -> None:
        """Line 5 as printed: tau_j from a simulation of its own instead of the one that line 12 made."""
        seed = child_seed(self.seed, "line 5", self._generation)
        jobs = {f"g{self._generation:04d}-tau-i{one.id:06d}": one for one in population}
        made = (Job(key, seed, "micro", False, one.z, one.tau.astype(np.float32)) for key, one in jobs.items())
        for key, outcome in self.simulations.stream(made):
            if outcome.macro is not None:
                jobs[key].traffic = outcome.macro.queue.astype(np.float16)
        self._spend("micro", len(population))

    def _spend(self, rung: Rung, count: int) -> None:
        self.spent += COST[rung] * count
        self.counts[rung] += count

    def _record(self, one: Individual, rung: Rung, seed: int, key: str, outcome: Outcome) -> None:
        macro = outcome.macro
        if macro is None:
            one.estimate = math.inf
            self.failure = outcome.error
            return
        self.traffic[key] = macro.queue
        if not outcome.complete(macro.queue.shape[1]):
            # Given up: the error so far, spread over all cells, is a lower bound of what the run would have ended with.
            observed = ~np.isnan(self.target.values)
            seen = np.nan_to_num(np.square(macro.queue - self.target.values))
            bound = math.sqrt(float(seen[observed].sum()) / int(observed.sum()))
            one.error[rung] = bound
            one.estimate = max(bound, self._hopeless or bound)
            return
        quantity = self.target.quantity(macro)
        one.traffic = macro.queue.astype(np.float16)
        if rung == "micro":
            one.samples.append(self.target.rmse(quantity))
            one.seeds.append(seed)
            for cheap, correction in self.correction.items():
                if cheap in one.quantity and len(one.samples) == 1:
                    correction.add(one.quantity[cheap], quantity, self.target.values)
        before = one.quantity.get(rung, quantity)
        one.quantity[rung] = before + (quantity - before) / np.float32(max(1, len(one.samples)))  # the mean over seeds
        one.error[rung] = float(np.mean(one.samples)) if rung == "micro" else self.target.rmse(quantity)
        if one.flows is not None and self.target.by_road:
            self.archive.append((one.flows, quantity, ORDER.index(rung)))
            del self.archive[:-SURROGATE_SAMPLES]
        if self._guides:
            self.guides.append((one.z.astype(np.float16), quantity.astype(np.float16), ORDER.index(rung)))
            del self.guides[: -self._guides]
        if rung == "micro":
            one.estimate = one.error["micro"]
        else:
            correction = self.correction[rung]
            one.estimate = correction.error(self.target.rmse(correction.apply(quantity)))

    # -- what was learnt ----------------------------------------------------------------------------------------------

    def level(self, one: Individual) -> Array:
        """What is known of a candidate's series, at the level of the best rung; as observed, where nothing is known."""
        rung = next((rung for rung in reversed(ORDER) if rung in one.quantity), None)
        if rung is None:
            return self.target.values
        return one.quantity[rung] if rung == "micro" else self.correction[rung].apply(one.quantity[rung])

    def surrogate(self) -> FlowSurrogate:
        """What past simulations say of how flows become the observed quantity."""
        flows, quantity = (np.stack([row[i] for row in self.archive]).astype(np.float32) for i in range(2))
        return FlowSurrogate(flows, quantity, np.array([rung for _, _, rung in self.archive]))

    def guide(self) -> EnsembleKalman | None:
        """What past simulations say of how latents move the observed series; None while there are too few."""
        if len(self.guides) < min(self.settings.population, SURROGATE_SAMPLES):
            return None
        observed = ~np.isnan(self.target.values)
        z, quantity, rung = (np.stack([np.asarray(row[i]) for row in self.guides]) for i in range(3))
        quantity = quantity.astype(np.float32)
        for cheap, correction in self.correction.items():
            rows = rung == ORDER.index(cheap)
            quantity[rows] = correction.apply(quantity[rows])
        return EnsembleKalman(z.reshape(len(z), -1), quantity[:, observed], rung)
