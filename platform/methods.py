"""What can be compared: Throng's search, the paper's baselines, peers, nulls, and one departure at a time taken back.

A method is a set of settings put on top of a case. What it leaves alone is shared: encoder, decoder, learner, router,
ladder of simulations, re-evaluated elites, budget, seeds. Hidden drivers stay those of the case whatever a method changes.
"""

from __future__ import annotations

from dataclasses import dataclass

from ..scenarios.errors import InputError
from .references import FASTEST, IDENTIFIABILITY, PRIOR, SEED_FLOOR, SHORTEST

OWN = "masdiff"


@dataclass(frozen=True)
class Method:
    """One way to explain what was observed."""

    name: str
    about: str
    settings: tuple[str, ...] = ()  # `key=value`, as after --set
    profile: str = "fast"


NO_SCREEN = "search.screen=1"
SEARCHES = (
    Method(OWN, "Algorithm 2 with Throng's defaults"),
    Method(
        "no-mutation", "Algorithm 2 without lines 10-13: all candidates are drawn by line 6", ("search.mutation=false",)
    ),
    Method("no-elites", "Algorithm 2 without retention of the best", ("search.elitism=false",)),
    Method("no-learning", "Algorithm 2 with an untrained denoiser", ("search.learning=false",)),
    Method("no-screening", "Algorithm 2; every candidate drawn is simulated", (NO_SCREEN,)),
    Method(
        "no-guidance", "Algorithm 2; mutation knows the parent's error, not where it is", ("search.guidance=false",)
    ),
    Method("one-step", "Algorithm 2; all children of a generation keep the same share", ("search.kept_spread=0",)),
    Method("random", "random search: draws from the prior", ("search.proposals=random", NO_SCREEN)),
    Method("random-screened", "random search, screened by flows as masdiff is", ("search.proposals=random",)),
    Method("cma", "CMA-ES (package cma) in the same latent", ("search.proposals=cma",)),
    Method(
        "cgan", "the paper's CGAN: a conditional GAN proposes and is mutated by its noise", ("search.generator=gan",)
    ),
    Method("ldm-cfg", "the paper's LDM_CFG: diffusion told the error, no evolution", ("search.proposals=guided",)),
    Method("ldm-pcfg", "the paper's LDM_PCFG: the same with a proxy of the error", ("search.proposals=proxy",)),
    Method("ldm-imit", "the paper's LDM.IMIT: one-step learner, gamma = 0", ("learner.discount=0",)),
    Method("eq8-weights", "departure taken back: weights of Eq. 8", ("search.weight=linear",)),
    Method("line6-handover", "departure taken back: line 6 redraws everybody", ("search.handover=resample",)),
    Method("line5", "departure taken back: line 5 simulates again", ("search.reuse=false",)),
    Method("micro-only", "departure taken back: no cheap simulations", ("search.ladder=[micro]",)),
    Method(
        "astar-q",
        "departure taken back: A* + Q (Eq. 12), lambda 300 m",
        ("navigation.router=astar_q", "navigation.lambda_metres=300"),
    ),
    Method("dqn", "departure taken back: a deep Q-network per vehicle", ("learner.kind=dqn",)),
    Method("iql", "implicit Q-learning per vehicle", ("learner.kind=iql",)),
    Method("soft-vi", "soft value iteration: random routes (recursive logit)", ("learner.kind=soft_vi",)),
    Method("token", "departure taken back: numbers per vehicle", ("latent.kind=token",)),
    Method("paper", "all departures taken back (configs/masdiff_paper.yaml), at the case's budget", (), "paper"),
    Method(
        "table",
        "the literal reward table per vehicle; neither screened (decoding a table is slow) nor guided",
        ("latent.kind=table", "diffusion.width=64", "search.guidance=false", NO_SCREEN),
    ),
)
PEERS = (
    Method("duaiterate", "SUMO's duaIterate.py: user equilibrium, an iteration for each simulation of the budget"),
    Method("routesampler", "SUMO's routeSampler.py on counts of all roads, which no other method sees"),
)
# Simulated once per case and seed, beside every search.
REFERENCES = {
    "seed-floor": SEED_FLOOR,
    "identifiability-floor": IDENTIFIABILITY,
    "prior": PRIOR,
    "shortest": SHORTEST,
    "fastest": FASTEST,
}
METHODS = {method.name: method for method in (*SEARCHES, *PEERS)}


def chosen(names: list[str]) -> list[Method]:
    """The methods of these names, in their order.

    Raises:
        InputError: a name is unknown, or given twice.
    """
    for name in names:
        if name in REFERENCES:
            raise InputError(f"--methods: {name} is simulated beside every search; name others")
        if name not in METHODS:
            raise InputError(f"--methods: no method {name!r}; known: {', '.join(METHODS)}")
        if names.count(name) > 1:
            raise InputError(f"--methods: {name} is given twice")
    return [METHODS[name] for name in names]
