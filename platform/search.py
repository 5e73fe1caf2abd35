"""MASDiff, Algorithm 2: the evolutionary diffusion search over preference latents.

Per generation of `proposals: evolution`, with the resolutions of the paper's gaps named where they are:

    lines 5-9    the traffic of last generation's simulations is reused as tau (line 5 repeats line 12 of the generation
                 before); new latents are drawn from p(. | tau) for half of the population, the other half lives on
                 (`handover: mixed`; `resample` redraws all, as the paper prints); learn, simulate, weigh, train
    lines 10-13  roulette, truncated diffusion-denoising, learn, simulate, weigh, train

The other sources of candidates (platform/proposals.py: the prior, CMA-ES, guided sampling) ask and tell instead; all else,
the ladder, the elites and the budget, is the same for all.

A candidate climbs a ladder: screened by its flows, simulated mesoscopically, then without driver noise, then in full on a
fresh seed. The best few are re-simulated with another seed every generation, so that lucky seeds do not survive.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from ..policies.ensemble_kalman import EnsembleKalman
from ..policies.fidelity import Correction
from ..policies.screening import FlowSurrogate
from ..scenarios.errors import InputError
from ..workers.pool import Job
from ..workers.reward import Proposal, RewardClient
from ..workers.sumo_files import Fidelity
from .config import Rung, SearchConfig
from .evolution import WEIGHTS, Individual, Operator, effective_sample_size, kept_signal, roulette
from .progress import Progress
from .proposals import Source
from .seeds import child_rng, child_seed
from .simulations import Outcome, Simulations
from .target import Target

Array = NDArray[np.float32]
COST = {"meso": 0.125, "quiet": 1.0, "micro": 1.0}  # micro-equivalent simulations; bench/ measures the mesoscopic one
ORDER: tuple[Rung, ...] = ("meso", "quiet", "micro")
FINAL_SEEDS = 3  # seeds the winner must have been simulated with before the search ends
SURROGATE_SAMPLES = 160  # simulations the flow surrogate learns from
GUIDE_SAMPLES, GUIDE_BYTES = 600, 2**26  # simulations that guidance learns from, and the memory of their latents
DAMPING = (-2.0, 1.0)  # of guidance: log10 of the range it is drawn from


@dataclass(eq=False)
class SearchState:
    """All that a generation leaves to the next; a checkpoint holds exactly this and the reward service's tensors."""

    generation: int  # the next one to run
    next_id: int
    spent: float  # micro-equivalent simulations
    population: list[Individual]
    elites: list[Individual]
    replay: list[list[Individual]]  # of the last generations, newest last
    correction: dict[Rung, Correction]  # of cheap rungs, to the micro level
    history: list[dict[str, float]]
    simulations: dict[str, int]


class Search:
    """Runs generations until the budget is spent."""

    def __init__(
        self,
        settings: SearchConfig,
        seed: int,
        target: Target,
        reference: Array,
        vehicles: int,
        shape: tuple[int, ...],
        simulations: Simulations,
        reward: RewardClient | None,
        progress: Progress,
        floor: float,
        source: Source | None = None,
    ) -> None:
        self.settings = settings
        self.seed = seed
        self.target = target
        self.reference = reference  # [roads, minutes] the traffic state before anything is learnt
        self.vehicles = vehicles
        self.shape = shape
        self.simulations = simulations
        self._reward = reward
        self.progress = progress
        self.floor = floor
        self.source = source  # None: evolution
        self.state = SearchState(
            0, 0, 0.0, [], [], [], {r: Correction() for r in settings.ladder[:-1]}, [], dict.fromkeys(ORDER, 0)
        )
        self.archive: list[tuple[Array, Array, int]] = []  # flows, quantity, rung: what the surrogate learns from
        self.guides: list[tuple[Array, Array, int]] = []  # latent, quantity, rung: what guidance learns from
        latent = 4 * int(np.prod(shape))
        self._guides = min(GUIDE_SAMPLES, GUIDE_BYTES // latent) if settings.guidance and source is None else 0
        self._traffic: dict[str, Array] = {}  # this generation's simulated queues by key, for the store
        self._born: list[Individual] = []
        self._failure = ""  # why a simulation failed last

    @property
    def reward(self) -> RewardClient:
        """The reward service; searches that do not learn have none."""
        assert self._reward is not None
        return self._reward

    def tensors(self) -> dict[str, torch.Tensor]:
        """What the reward service and the source of candidates have learnt, for a checkpoint."""
        learnt = {} if self._reward is None else self._reward.tensors or {}
        told = {} if self.source is None else self.source.tensors()
        return {f"reward.{key}": value for key, value in learnt.items()} | {f"source.{k}": v for k, v in told.items()}

    def load(self, tensors: dict[str, torch.Tensor]) -> None:
        """Restores what `tensors` returned."""
        parts = {
            name: {key.removeprefix(name): value for key, value in tensors.items() if key.startswith(name)}
            for name in ("reward.", "source.")
        }
        if parts["reward."]:
            self.reward.load(parts["reward."])
        if self.source is not None:
            self.source.load(parts["source."])

    # -- the loop -----------------------------------------------------------------------------------------------------

    @property
    def finished(self) -> bool:
        state, cfg = self.state, self.settings
        if state.generation == 0:
            return False
        if state.generation >= cfg.generations or state.spent + self._generation_cost() > cfg.budget:
            return True
        best = [row["best"] for row in state.history]
        stale = len(best) - 1 - int(np.argmin(best))
        return stale >= cfg.patience

    def _generation_cost(self) -> float:
        """What one more generation and the final check of the winner will cost at most."""
        cfg = self.settings
        batches = [cfg.population] if self.source or not cfg.mutation else [self._drawn(), cfg.population]
        again = 0 if cfg.reuse else len(self.state.population)
        return sum(self._ladder_cost(count) for count in batches) + again + cfg.elites + self._final_cost()

    def _final_cost(self) -> float:
        return float(self.settings.elites * (FINAL_SEEDS - 1))

    def _ladder_cost(self, count: int) -> float:
        return sum(COST[rung] * n for rung, n in zip(self.settings.ladder, self._climbing(count), strict=True))

    def _climbing(self, count: int) -> list[int]:
        sizes = [count]
        for _ in self.settings.ladder[1:]:
            sizes.append(max(1, math.ceil(self.settings.promote * sizes[-1])))
        return sizes

    def _drawn(self) -> int:
        cfg = self.settings
        return cfg.population if cfg.handover == "resample" or not cfg.mutation else cfg.population // 2

    def generation(self) -> None:
        """One generation of candidates, proposed, simulated and learnt from."""
        self._traffic, self._born = {}, []
        began = time.monotonic()
        if self.source is None:
            self._evolve()
        else:
            self._ask_and_tell(self.source)
        self._close_generation(time.monotonic() - began)

    def _evolve(self) -> None:
        """One pass through Algorithm 2's loop."""
        state, cfg = self.state, self.settings
        if state.generation == 0:
            taus = np.repeat(self.reference[None], cfg.population, axis=0)
            proposal = self.reward.sample(taus, self._seed_of("sample"))
            state.population = self._evaluate(self._individuals("prior", proposal, taus, [-1] * cfg.population), "a")
            traffic = [one.traffic for one in state.population if one.traffic is not None]
            self.reward.fit_encoder(np.stack(traffic).astype(np.float32))
        else:
            if not cfg.reuse:
                self._simulate_again(state.population)
            drawn = self._screened("diffusion", self._drawn())
            fresh = self._evaluate(drawn, "a")
            kept = state.population if cfg.handover == "mixed" and cfg.mutation else []
            state.population = self._distinct([*kept, *self._retained(), *fresh])
        children: list[Individual] = []
        if cfg.mutation:
            training = self._train("a")
            guide = self._guide()  # while the model trains
            training()
            children = self._evaluate(self._screened("mutation", cfg.population, guide), "b")
        training = self._train("b")
        self._renew_elites([*state.population, *children])  # simulates while the model trains
        training()
        state.population = self._distinct([*(children or state.population), *self._retained()])

    def _ask_and_tell(self, source: Source) -> None:
        """Candidates from a source that does not evolve; their policies are learnt at the best traffic known so far."""
        state, cfg = self.state, self.settings
        known = state.elites[0].traffic if state.elites else None
        tau = self.reference if known is None else known.astype(np.float32)
        total = cfg.population * (cfg.screen if self._can_screen else 1)
        taus = np.repeat(tau[None], total, axis=0)
        proposal = source.ask(taus, self._seed_of("ask"))
        state.population = self._evaluate(self._promising("prior", proposal, taus, [-1] * total, cfg.population), "a")
        source.tell(state.population, self._seed_of("tell"))
        self._renew_elites(state.population)

    def _retained(self) -> list[Individual]:
        """The elites, where they live on: unmutated, as parents and as what the model trains on."""
        return self.state.elites if self.settings.elitism else []

    def _simulate_again(self, population: list[Individual]) -> None:
        """Line 5 as printed: tau_j from a simulation of its own instead of the one that line 12 made."""
        state = self.state
        seed = child_seed(self.seed, "line 5", state.generation)
        jobs = {f"g{state.generation:04d}-tau-i{one.id:06d}": one for one in population}
        made = (Job(key, seed, "micro", False, one.z, one.tau.astype(np.float32)) for key, one in jobs.items())
        for key, outcome in self.simulations.stream(made):
            if outcome.macro is not None:
                jobs[key].traffic = outcome.macro.queue.astype(np.float16)
        state.spent += len(population)
        state.simulations["micro"] += len(population)

    def _close_generation(self, seconds: float) -> None:
        state = self.state
        best = self.best()
        state.replay = [*state.replay, [one for one in self._born if math.isfinite(one.estimate)]]
        state.replay = state.replay[-self.settings.replay :]
        alive = {one.id for one in (*state.population, *state.elites)}
        for one in (one for group in state.replay for one in group if one.id not in alive):
            one.traffic, one.flows, one.quantity = None, None, {}  # training needs latent, condition and estimate only
        estimates = np.array([one.estimate for one in self._born if math.isfinite(one.estimate)])
        latents = np.stack([one.z for one in state.population]).reshape(len(state.population), -1)
        state.history.append(
            {
                "generation": state.generation,
                "simulations": state.spent,
                "best": float(np.mean(best.samples)),
                "best_sd": float(np.std(best.samples, ddof=1)) if len(best.samples) > 1 else float("nan"),
                "median": float(np.median(estimates)) if estimates.size else float("nan"),
                "ess": effective_sample_size(self._weights(state.population)),
                "latent_sd": float(latents.std(axis=0).mean()),
                "seconds": seconds,
            }
        )
        state.generation += 1
        self._show()

    def best(self) -> Individual:
        """The elite with the lowest mean error over its fresh seeds, among those simulated most."""
        elites = [one for one in self.state.elites if one.samples]
        if not elites:
            raise InputError(f"no candidate survived a full simulation; the last failed with: {self._failure}")
        needed = min(FINAL_SEEDS, max(len(one.samples) for one in elites))
        return min((one for one in elites if len(one.samples) >= needed), key=lambda one: float(np.mean(one.samples)))

    def conclude(self) -> Individual:
        """Gives every elite its full number of seeds, then names the best."""
        rounds = FINAL_SEEDS - min(len(one.samples) for one in self.state.elites)
        for again in range(max(0, rounds)):
            short = [one for one in self.state.elites if len(one.samples) < FINAL_SEEDS]
            self._simulate(short, "micro", f"final{again}", fresh=True)
        return self.best()

    # -- proposing ----------------------------------------------------------------------------------------------------

    def _individuals(
        self, operator: Operator, proposal: Proposal, taus: Array, parents: Sequence[int]
    ) -> list[Individual]:
        state = self.state
        first = state.next_id
        state.next_id += len(parents)
        codes = [None] * len(parents) if proposal.code is None else list(proposal.code)
        return [
            Individual(first + i, state.generation, operator, int(parent), z, tau.astype(np.float16), code)
            for i, (z, tau, parent, code) in enumerate(zip(proposal.z, taus, parents, codes, strict=True))
        ]

    @property
    def _can_screen(self) -> bool:
        """Whether the surrogate has seen enough simulations to judge flows."""
        enough = min(self.settings.population, SURROGATE_SAMPLES)
        own_choice = self.settings.proposals in ("evolution", "random")  # the others have to hear of all they propose
        return own_choice and self.settings.screen > 1 and self.target.by_road and len(self.archive) >= enough

    def _screened(self, operator: Operator, count: int, guide: EnsembleKalman | None = None) -> list[Individual]:
        """Draws `screen` times as many candidates as needed and keeps those whose flows promise the smallest error.

        Mutations also take a step of the `guide`.
        """
        state, cfg = self.state, self.settings
        total = count * (cfg.screen if self._can_screen else 1)
        parents = state.population
        rng = child_rng(self.seed, "select", state.generation, operator)
        chosen = [parents[i] for i in roulette(self._weights(parents), total, rng)]
        # Line 6 draws for the traffic the parent's policies led to; line 10 keeps the parent's own condition.
        source = [p.traffic if operator == "diffusion" and p.traffic is not None else p.tau for p in chosen]
        taus = np.stack(source).astype(np.float32)
        seed = self._seed_of(operator)
        if operator == "diffusion":
            proposal = self.reward.sample(taus, seed)
        else:
            share = kept_signal(cfg.kept_first, cfg.kept_last, state.spent / cfg.budget)
            finer = 10 ** -child_rng(self.seed, "kept", state.generation).uniform(0, cfg.kept_spread, total)
            kept = 1 - (1 - share) * finer
            genes = np.stack([p.z if p.code is None else p.code for p in chosen])
            proposal = self.reward.mutate(genes, taus, kept, seed)
            if guide is not None and proposal.code is None:
                proposal = Proposal(proposal.z + self._towards_observation(guide, chosen))
        return self._promising(operator, proposal, taus, [p.id for p in chosen], count)

    def _guide(self) -> EnsembleKalman | None:
        """What past simulations say of how latents move the observed series; None while there are too few."""
        if len(self.guides) < min(self.settings.population, SURROGATE_SAMPLES):
            return None
        observed = ~np.isnan(self.target.values)
        z, quantity, rung = (np.stack([np.asarray(row[i]) for row in self.guides]) for i in range(3))
        quantity = quantity.astype(np.float32)
        for cheap, correction in self.state.correction.items():
            rows = rung == ORDER.index(cheap)
            quantity[rows] = correction.apply(quantity[rows])
        return EnsembleKalman(z.reshape(len(z), -1), quantity[:, observed], rung)

    def _towards_observation(self, guide: EnsembleKalman, parents: list[Individual]) -> Array:
        """Steps `[parents, *latent]` that should take the parents' traffic to what was observed; of random boldness.

        Departs from the paper (`search.guidance`), whose mutations learn nothing from where the traffic was wrong.
        """
        observed = ~np.isnan(self.target.values)
        residual = np.stack([(self.target.values - self._level(one))[observed] for one in parents])
        rng = child_rng(self.seed, "guidance", self.state.generation)
        step = guide.step(residual, 10 ** rng.uniform(*DAMPING, len(parents)))
        step *= rng.uniform(0.0, 1.0, (len(parents), 1)).astype(np.float32)
        return step.reshape(len(parents), *self.shape)

    def _level(self, one: Individual) -> Array:
        """What is known of a candidate's series, at the level of the best rung; as observed, where nothing is known."""
        rung = next((rung for rung in reversed(ORDER) if rung in one.quantity), None)
        if rung is None:
            return self.target.values
        return one.quantity[rung] if rung == "micro" else self.state.correction[rung].apply(one.quantity[rung])

    def _promising(
        self, operator: Operator, proposal: Proposal, taus: Array, parents: list[int], count: int
    ) -> list[Individual]:
        """Individuals of those `count` proposals whose flows promise the smallest error; of all, if no more were made."""
        keep, flows = np.arange(len(parents)), []
        if len(parents) > count:
            flows = self.simulations.pool.flows(zip(proposal.z, taus, strict=True))
            surrogate = FlowSurrogate(
                np.stack([f for f, _, _ in self.archive]).astype(np.float32),
                np.stack([q for _, q, _ in self.archive]).astype(np.float32),
                np.array([rung for _, _, rung in self.archive]),
            )
            # One by one: the features of 4,000 candidates together fill gigabytes.
            promise = [self.target.rmse(surrogate.predict(flow[None])[0]) for flow in flows]
            keep = np.sort(np.argsort(promise, kind="stable")[:count])
        individuals = self._individuals(operator, proposal.take(keep), taus[keep], [parents[i] for i in keep])
        for one, i in zip(individuals, keep, strict=True):
            one.flows = flows[i].astype(np.float16) if flows else None
        return individuals

    # -- judging ------------------------------------------------------------------------------------------------------

    def _evaluate(self, individuals: list[Individual], phase: str) -> list[Individual]:
        """Takes candidates up the ladder; those that failed to simulate are dropped, not weighted."""
        self._born += individuals
        if self.target.by_road:
            missing = [one for one in individuals if one.flows is None]
            flows = self.simulations.pool.flows((one.z, one.tau.astype(np.float32)) for one in missing)
            for one, flow in zip(missing, flows, strict=True):
                one.flows = flow.astype(np.float16)
        climbing = individuals
        sizes = self._climbing(len(individuals))
        for rung, size in zip(self.settings.ladder, sizes, strict=True):
            climbing = (
                sorted(climbing, key=lambda one: (one.estimate, one.id))[:size]
                if rung != self.settings.ladder[0]
                else climbing
            )
            self._simulate(climbing, rung, phase, fresh=rung == "micro")
            climbing = [one for one in climbing if math.isfinite(one.estimate)]
        survivors = [one for one in individuals if math.isfinite(one.estimate)]
        if not survivors:
            raise InputError(
                f"all {len(individuals)} simulations of generation {self.state.generation} failed, the last with: "
                f"{self._failure}. Mend that (a slow machine: workers.deadline) and run the same command again"
            )
        return survivors

    def _simulate(self, individuals: list[Individual], rung: Rung, phase: str, fresh: bool) -> None:
        state = self.state
        generation = state.generation
        # Common random numbers within a generation; elites get a seed of their own each time.
        seed = child_seed(self.seed, "simulate", generation, phase, rung)
        worst = self._hopeless()
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
        state.spent += COST[rung] * len(individuals)
        state.simulations[rung] += len(individuals)

    def _hopeless(self) -> float | None:
        """An error beyond which a candidate can be given up: half again the prior generation's median."""
        if not self.state.history:
            return None
        return 1.5 * self.state.history[0]["median"]

    def _record(self, one: Individual, rung: Rung, seed: int, key: str, outcome: Outcome) -> None:
        macro = outcome.macro
        if macro is None:
            one.estimate = math.inf
            self._failure = outcome.error
            return
        self._traffic[key] = macro.queue
        if not outcome.complete(macro.queue.shape[1]):
            # Given up: the error so far, spread over all cells, is a lower bound of what the run would have ended with.
            observed = ~np.isnan(self.target.values)
            seen = np.nan_to_num(np.square(macro.queue - self.target.values))
            bound = math.sqrt(float(seen[observed].sum()) / int(observed.sum()))
            one.error[rung] = bound
            one.estimate = max(bound, self._hopeless() or bound)
            return
        quantity = self.target.quantity(macro)
        one.traffic = macro.queue.astype(np.float16)
        if rung == "micro":
            one.samples.append(self.target.rmse(quantity))
            one.seeds.append(seed)
            for cheap, correction in self.state.correction.items():
                if cheap in one.quantity and len(one.samples) == 1:
                    correction.add(one.quantity[cheap], quantity, self.target.values)
        if rung == "micro" and len(one.samples) > 1:
            quantity_mean = one.quantity[rung] + (quantity - one.quantity[rung]) / np.float32(len(one.samples))
            one.quantity[rung] = quantity_mean.astype(np.float32)
        else:
            one.quantity[rung] = quantity
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
            correction = self.state.correction[rung]
            one.estimate = correction.error(self.target.rmse(correction.apply(quantity)))

    def _renew_elites(self, candidates: list[Individual]) -> None:
        """Re-simulates the elites with a fresh seed; then the best by mean micro error are the elites."""
        self._simulate(self.state.elites, "micro", "elite", fresh=True)
        known = self._distinct([*self.state.elites, *(one for one in candidates if one.samples)])
        # One seed can be lucky: a newcomer is held back by the standard error that one seed has.
        spread = [float(np.std(one.samples, ddof=1)) for one in known if len(one.samples) > 2]
        noise = float(np.median(spread)) if spread else 0.0
        known.sort(key=lambda one: (float(np.mean(one.samples)) + noise / math.sqrt(len(one.samples)), one.id))
        self.state.elites = known[: self.settings.elites]

    def _weights(self, individuals: list[Individual]) -> NDArray[np.float64]:
        return WEIGHTS[self.settings.weight](np.array([one.estimate for one in individuals]))

    def _train(self, phase: str) -> Callable[[], object]:
        """Starts the weighted training on this generation and the replayed ones; what is returned waits for its end.

        Weights are computed over all of them.
        """
        current = [one for one in self._born if math.isfinite(one.estimate)]
        samples = self._distinct([*(one for old in self.state.replay for one in old), *self._retained(), *current])
        if len(samples) < 2 or not self.settings.learning:
            return lambda: None
        z = np.stack([one.z for one in samples])
        taus = np.stack([one.tau for one in samples]).astype(np.float32)
        return self.reward.train(z, taus, self._weights(samples), self._seed_of(f"train-{phase}"))

    @staticmethod
    def _distinct(individuals: list[Individual]) -> list[Individual]:
        return list({one.id: one for one in individuals}.values())

    def _seed_of(self, purpose: str) -> int:
        return child_seed(self.seed, purpose, self.state.generation)

    # -- showing ------------------------------------------------------------------------------------------------------

    def _show(self, under_way: float = 0.0) -> None:
        state = self.state
        share = min(1.0, (state.spent + under_way) / self.settings.budget)
        best = f"best {state.history[-1]['best']:.3f}" if state.history else "best –"
        floor = f"floor {self.floor:.3f}" if math.isfinite(self.floor) else "floor –"
        self.progress.advance(share, f"generation {state.generation} · {best} · {floor} {self.target.unit}")

    # -- what a commit takes --------------------------------------------------------------------------------------------

    @property
    def born(self) -> list[Individual]:
        """Individuals of the last generation."""
        return self._born

    @property
    def traffic(self) -> dict[str, Array]:
        """Queues of the last generation's simulations by key."""
        return self._traffic
