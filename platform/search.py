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

from ..policies.diffusion import OUTERMOST
from ..policies.ensemble_kalman import EnsembleKalman
from ..scenarios.errors import InputError
from ..workers.reward import Proposal, RewardClient
from .config import SearchConfig
from .evolution import WEIGHTS, Individual, Operator, effective_sample_size, kept_signal, roulette
from .ladder import SURROGATE_SAMPLES, Ladder, guide_samples
from .progress import Progress
from .proposals import Source
from .seeds import child_rng, child_seed
from .simulations import Simulations
from .target import Target

Array = NDArray[np.float32]
FINAL_SEEDS = 3  # seeds the winner must have been simulated with before the search ends
DAMPING = (-2.0, 1.0)  # of guidance: log10 of the range it is drawn from


@dataclass(eq=False)
class SearchState:
    """All that a generation leaves to the next; a checkpoint holds exactly this and the reward service's tensors."""

    generation: int  # the next one to run
    next_id: int
    population: list[Individual]
    elites: list[Individual]
    replay: list[list[Individual]]  # of the last generations, newest last
    history: list[dict[str, float]]


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
        self.shape = shape
        self._reward = reward
        self.progress = progress
        self.floor = floor
        self.source = source  # None: evolution
        self.state = SearchState(0, 0, [], [], [], [])
        guides = guide_samples(shape) if settings.guidance and source is None else 0
        self.ladder = Ladder(settings, seed, target, vehicles, guides, simulations, self._show)
        self.born: list[Individual] = []  # individuals of the last generation

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
        if state.generation >= cfg.generations or self.ladder.spent + self._generation_cost() > cfg.budget:
            return True
        best = [row["best"] for row in state.history]
        stale = len(best) - 1 - int(np.argmin(best))
        return stale >= cfg.patience

    def _generation_cost(self) -> float:
        """What one more generation and the final check of the winner will cost at most."""
        cfg = self.settings
        batches = [cfg.population] if self.source or not cfg.mutation else [self._drawn(), cfg.population]
        again = 0 if cfg.reuse else len(self.state.population)
        return sum(self.ladder.cost(count) for count in batches) + again + cfg.elites + self._final_cost()

    def _final_cost(self) -> float:
        return float(self.settings.elites * (FINAL_SEEDS - 1))

    def _drawn(self) -> int:
        cfg = self.settings
        return cfg.population if cfg.handover == "resample" or not cfg.mutation else cfg.population // 2

    def generation(self) -> None:
        """One generation of candidates, proposed, simulated and learnt from."""
        self.born = []
        self.ladder.begin(self.state.generation, self.state.history)
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
                self.ladder.line_5(state.population)
            drawn = self._screened("diffusion", self._drawn())
            fresh = self._evaluate(drawn, "a")
            kept = state.population if cfg.handover == "mixed" and cfg.mutation else []
            state.population = self._distinct([*kept, *self._retained(), *fresh])
        children: list[Individual] = []
        if cfg.mutation:
            training = self._train("a")
            guide = self.ladder.guide()  # while the model trains
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

    def _close_generation(self, seconds: float) -> None:
        state = self.state
        best = self.best()
        state.replay = [*state.replay, [one for one in self.born if math.isfinite(one.estimate)]]
        state.replay = state.replay[-self.settings.replay :]
        alive = {one.id for one in (*state.population, *state.elites)}
        for one in (one for group in state.replay for one in group if one.id not in alive):
            one.traffic, one.flows, one.quantity = None, None, {}  # training needs latent, condition and estimate only
        estimates = np.array([one.estimate for one in self.born if math.isfinite(one.estimate)])
        latents = np.stack([one.z for one in state.population]).reshape(len(state.population), -1)
        state.history.append(
            {
                "generation": state.generation,
                "simulations": self.ladder.spent,
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
            raise InputError(f"no candidate survived a full simulation; the last failed with: {self.ladder.failure}")
        needed = min(FINAL_SEEDS, max(len(one.samples) for one in elites))
        return min((one for one in elites if len(one.samples) >= needed), key=lambda one: float(np.mean(one.samples)))

    def conclude(self) -> Individual:
        """Gives every elite its full number of seeds, then names the best."""
        self.ladder.begin(self.state.generation, self.state.history)
        rounds = FINAL_SEEDS - min(len(one.samples) for one in self.state.elites)
        for again in range(max(0, rounds)):
            short = [one for one in self.state.elites if len(one.samples) < FINAL_SEEDS]
            self.ladder.simulate(short, "micro", f"final{again}", fresh=True)
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
        return own_choice and self.settings.screen > 1 and self.target.by_road and len(self.ladder.archive) >= enough

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
            share = kept_signal(cfg.kept_first, cfg.kept_last, self.ladder.spent / cfg.budget)
            finer = 10 ** -child_rng(self.seed, "kept", state.generation).uniform(0, cfg.kept_spread, total)
            kept = 1 - (1 - share) * finer
            genes = np.stack([p.z if p.code is None else p.code for p in chosen])
            proposal = self.reward.mutate(genes, taus, kept, seed)
            if guide is not None and proposal.code is None:
                guided = proposal.z + self._towards_observation(guide, chosen)
                proposal = Proposal(np.clip(guided, -OUTERMOST, OUTERMOST))
        return self._promising(operator, proposal, taus, [p.id for p in chosen], count)

    def _towards_observation(self, guide: EnsembleKalman, parents: list[Individual]) -> Array:
        """Steps `[parents, *latent]` that should take the parents' traffic to what was observed; of random boldness.

        Departs from the paper (`search.guidance`), whose mutations learn nothing from where the traffic was wrong.
        """
        observed = ~np.isnan(self.target.values)
        residual = np.stack([(self.target.values - self.ladder.level(one))[observed] for one in parents])
        rng = child_rng(self.seed, "guidance", self.state.generation)
        step = guide.step(residual, 10 ** rng.uniform(*DAMPING, len(parents)))
        step *= rng.uniform(0.0, 1.0, (len(parents), 1)).astype(np.float32)
        return step.reshape(len(parents), *self.shape)

    def _promising(
        self, operator: Operator, proposal: Proposal, taus: Array, parents: list[int], count: int
    ) -> list[Individual]:
        """Individuals of those `count` proposals whose flows promise the smallest error; of all, if no more were made."""
        keep, flows = np.arange(len(parents)), []
        if len(parents) > count:
            flows = self.ladder.simulations.pool.flows(zip(proposal.z, taus, strict=True))
            surrogate = self.ladder.surrogate()
            # One by one: the features of 4,000 candidates together fill gigabytes.
            promise = [self.target.rmse(surrogate.predict(flow[None])[0]) for flow in flows]
            keep = np.sort(np.argsort(promise, kind="stable")[:count])
        individuals = self._individuals(operator, proposal.take(keep), taus[keep], [parents[i] for i in keep])
        for one, i in zip(individuals, keep, strict=True):
            one.flows = flows[i].astype(np.float16) if flows else None
        return individuals

    # -- judging ------------------------------------------------------------------------------------------------------

    def _evaluate(self, individuals: list[Individual], phase: str) -> list[Individual]:
        self.born += individuals
        return self.ladder.evaluate(individuals, phase)

    def _renew_elites(self, candidates: list[Individual]) -> None:
        """Re-simulates the elites with a fresh seed; then the best by mean micro error are the elites."""
        self.ladder.simulate(self.state.elites, "micro", "elite", fresh=True)
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
        current = [one for one in self.born if math.isfinite(one.estimate)]
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
        share = min(1.0, (self.ladder.spent + under_way) / self.settings.budget)
        best = f"best {state.history[-1]['best']:.3f}" if state.history else "best –"
        floor = f"floor {self.floor:.3f}" if math.isfinite(self.floor) else "floor –"
        self.progress.advance(share, f"generation {state.generation} · {best} · {floor} {self.target.unit}")
