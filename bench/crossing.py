"""The fine-tuners on the crossing: how exploitable what they learn is, and what constraint and confidence do.

    python bench/crossing.py --seeds 0 1 2 3 4 5 6 7 8 9

Every run (a method with a seed) is kept below --runs, and is not repeated. Gaps are sums of rewards over the six seconds,
mean of the four cars; a best response is PPO begun with the car's own actor (see `ResponseBudget`), evaluated on 256 games
with the beginnings and the draws of the policy's own.
"""

from __future__ import annotations

import argparse
import json
import os
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import torch
from throng.policies.marl.actors import Learner
from throng.policies.marl.algorithms import ALGORITHMS
from throng.policies.marl.crossing import Crossing
from throng.policies.marl.driving import DrivingTerms
from throng.policies.marl.exploitability import ResponseBudget, broken_gaps
from throng.policies.marl.game import play

ROLLOUTS, EVALUATED = 32, 256


@dataclass(frozen=True)
class Run:
    """One training and its evaluation."""

    method: str  # mappo, masac, trafficgamer, cce-masac
    seed: int
    episodes: int
    distance: float = 5.0
    confidence: float = 0.0
    gap: bool = True

    @property
    def name(self) -> str:
        return f"{self.method}-{self.seed}-{self.episodes}-{self.distance:g}-{self.confidence:g}"


def learner(run: Run, game: Crossing) -> Learner:
    algorithm = ALGORITHMS[run.method]
    given = {"confidence": run.confidence} if run.method == "trafficgamer" else {}
    return algorithm.made(game, algorithm.settings(**given), run.seed)


def done(run: Run) -> dict[str, Any]:
    """What came of a run."""
    torch.set_num_threads(1)
    game = Crossing(DrivingTerms(distance_limit=run.distance))
    one = learner(run, game)
    random = torch.Generator().manual_seed(run.seed)
    multipliers = []
    for _ in range(run.episodes):
        told = one.update(play(game, one.act, one.head.action, ROLLOUTS, random))
        if "multiplier" in told:
            multipliers.append(float(told["multiplier"].mean()))
    state, random = game.begin(EVALUATED, torch.Generator().manual_seed(10**6)), torch.Generator().manual_seed(run.seed)
    spacing, speed, crashed, reward = [], [], [], []
    for _ in range(game.horizon):
        draw, _ = one.act(game.see(state), random)
        state, outcome = game.step(state, one.head.action(draw))
        places = state.cars[..., :2]
        near = (torch.cdist(places, places) + 1e3 * torch.eye(game.agents)).amin((1, 2))
        spacing.append(near)
        speed.append(state.cars[..., 3])
        crashed.append(near < game.terms.crash_distance)
        reward.append(outcome.reward)
    found = {
        "return": float(torch.stack(reward).sum(0).mean()),
        "spacing": float(torch.stack(spacing).amin(0).mean()),
        "speed": float(torch.stack(speed).mean()),
        "crashes": float(torch.stack(crashed).any(0).float().mean()),
        "multiplier": float(np.mean(multipliers)) if multipliers else None,
    }
    if run.gap:
        found["gap"] = float(broken_gaps(game, one, ResponseBudget(), run.seed).gap.mean())
    return found


def all_done(runs: list[Run], folder: Path, processes: int) -> dict[Run, dict[str, Any]]:
    folder.mkdir(parents=True, exist_ok=True)
    paths = {run: folder / f"{run.name}.json" for run in runs}
    missing = [run for run, path in paths.items() if not path.exists()]
    with ProcessPoolExecutor(processes, get_context("spawn")) as pool:
        asked = {pool.submit(done, run): run for run in missing}
        for number, one in enumerate(as_completed(asked), 1):
            run = asked[one]
            paths[run].write_text(json.dumps(one.result()) + "\n")
            print(f"{number} of {len(missing)}: {run.name}", flush=True)
    return {run: json.loads(path.read_text()) for run, path in paths.items()}


def spread(values: list[float]) -> str:
    return f"{np.mean(values):.2f}" + (f" ± {np.std(values, ddof=1):.2f}" if len(values) > 1 else "")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=list(range(10)))
    parser.add_argument("--episodes", type=int, default=300)
    parser.add_argument("--processes", type=int, default=os.cpu_count())
    parser.add_argument("--runs", type=Path, default=Path("runs/crossing"))
    parser.add_argument("--out", type=Path, default=Path("docs/results"))
    given = parser.parse_args()
    methods = ("mappo", "trafficgamer", "masac", "cce-masac")
    gaps = [Run(method, seed, given.episodes) for seed in given.seeds for method in methods]
    grid = [
        Run("trafficgamer", seed, given.episodes, distance, confidence, gap=False)
        for seed in given.seeds[:5]
        for distance in (3.0, 7.0, 11.0)
        for confidence in (0.0, 0.5, 0.9)
    ]
    results = all_done([*gaps, *grid], given.runs, given.processes)
    command = f"python bench/crossing.py --seeds {' '.join(map(str, given.seeds))} --episodes {given.episodes}"
    lines = ["### crossing", "", f"`{command}`", ""]
    lines += ["| method | gap | return | least spacing, m | speed, m/s | games with a crash |", "|" + "---|" * 6]
    for method in methods:
        own = [results[run] for run in gaps if run.method == method]
        cells = [spread([one[key] for one in own]) for key in ("gap", "return", "spacing", "speed", "crashes")]
        lines.append(f"| {method} | {' | '.join(cells)} |")
    lines.append("")
    for one, other in (("trafficgamer", "mappo"), ("cce-masac", "masac")):
        pairs = [
            (results[Run(one, seed, given.episodes)]["gap"], results[Run(other, seed, given.episodes)]["gap"])
            for seed in given.seeds
        ]
        means = np.mean(pairs, axis=0)
        below = sum(a < b for a, b in pairs)
        lines.append(
            f"Gap of {one} ÷ {other}: {means[0] / means[1]:.2f} of the means; smaller in {below} of {len(pairs)} seeds."
        )
    headings = "| distance, m | confidence | least spacing, m | speed, m/s | mean multiplier | return |"
    lines += ["", headings, "|" + "---|" * 6]
    for distance in (3.0, 7.0, 11.0):
        for confidence in (0.0, 0.5, 0.9):
            own = [results[run] for run in grid if (run.distance, run.confidence) == (distance, confidence)]
            cells = [spread([one[key] for one in own]) for key in ("spacing", "speed", "multiplier", "return")]
            lines.append(f"| {distance:g} | {confidence:g} | {' | '.join(cells)} |")
    given.out.mkdir(parents=True, exist_ok=True)
    (given.out / "crossing.md").write_text("\n".join(lines) + "\n")
    told = [{**vars(run), **found} for run, found in results.items()]
    (given.out / "crossing.json").write_text(json.dumps(told, indent=1) + "\n")
    print("\n".join(lines))


if __name__ == "__main__":
    main()
