"""The fine-tuners on the crossing: how exploitable what they learn is, and what constraint and confidence do.

    python bench/crossing.py --seeds 0 1 2 3 4 5 6 7 8 9

Gaps are measured after several numbers of episodes of one training: who is less exploitable depends on when one asks.
Every run (a method with a seed) is kept below --runs, and is not repeated. Gaps are sums of rewards over the six seconds,
mean of the four cars; a best response is PPO begun with the car's own actor (see `ResponseBudget`), evaluated on 256 games
with the beginnings and the draws of the policy's own.

With the supplement's rates of critics MASAC brakes before its critics know what that leads to, and stays there: the first
policy's gradient is towards braking, and 60 episodes later the critics still know a quarter of it. Both soft actor-critics
therefore have faster critics here (`FAST`); MASAC with the supplement's is a row beside them, of three seeds.
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
FAST = {"critic_rate": 1e-3, "polyak": 0.05}
SLOW = "masac, slow critics"
METHODS: dict[
    str, tuple[str, dict[str, float], tuple[int, ...]]
] = {  # name -> algorithm, settings, when gaps are measured
    "mappo": ("mappo", {}, (100, 200)),
    "trafficgamer": ("trafficgamer", {}, (100, 200)),
    "trafficgamer, no magnet": ("trafficgamer", {"magnet": 0.0}, (100, 200)),
    "masac": ("masac", FAST, (100,)),
    "cce-masac": ("cce-masac", FAST, (100,)),
    SLOW: ("masac", {}, (100,)),
}
TRENDS = {  # what changes -> distances and confidences
    "distance": ((3.0, 0.0), (7.0, 0.0), (11.0, 0.0)),
    "confidence at 7 m": ((7.0, 0.0), (7.0, 0.5), (7.0, 0.9)),
    "confidence at 11 m": ((11.0, 0.0), (11.0, 0.5), (11.0, 0.9)),
}
CELLS = sorted({cell for cells in TRENDS.values() for cell in cells})
GRID = 100  # episodes of each
BITING = 0.3  # multipliers' rate there: with the default a multiplier rises by a hundredth of the costs in an episode
COLUMNS = {  # of the grid: key -> heading and decimals
    "mean_spacing": ("spacing, m", 1),
    "spacing": ("least spacing, m", 2),
    "speed": ("speed, m/s", 2),
    "near": ("moments too near", 3),
    "crashes": ("games with a crash", 2),
    "multiplier": ("mean multiplier", 2),
    "return": ("return", 1),
}


@dataclass(frozen=True)
class Run:
    """One training and its evaluation."""

    method: str  # a key of METHODS
    seed: int
    looks: tuple[int, ...]  # episodes after which gaps are measured, the last ends the training
    distance: float = 5.0
    confidence: float = 0.0
    multiplier_rate: float = 0.01
    gap: bool = True

    @property
    def name(self) -> str:
        method = self.method.replace(",", "").replace(" ", "-")
        looks = "-".join(map(str, self.looks))
        return f"{method}-{self.seed}-{looks}-{self.distance:g}-{self.confidence:g}-{self.multiplier_rate:g}"


def learner(run: Run, game: Crossing) -> Learner:
    name, given, _ = METHODS[run.method]
    algorithm = ALGORITHMS[name]
    if name == "trafficgamer":
        given = {**given, "confidence": run.confidence, "multiplier_rate": run.multiplier_rate}
    return algorithm.made(game, algorithm.settings(**given), run.seed)


def done(run: Run) -> dict[str, Any]:
    """What came of a run."""
    torch.set_num_threads(1)
    game = Crossing(DrivingTerms(distance_limit=run.distance))
    one = learner(run, game)
    random = torch.Generator().manual_seed(run.seed)
    multipliers, gaps = [], []
    for episode in range(1, run.looks[-1] + 1):
        told = one.update(play(game, one.act, one.head.action, ROLLOUTS, random))
        if "multiplier" in told:
            multipliers.append(float(told["multiplier"].mean()))
        if run.gap and episode in run.looks:
            gaps.append(float(broken_gaps(game, one, ResponseBudget(), run.seed).gap.mean()))
    return {
        **driving(game, one, run.seed),
        "gaps": gaps,
        "multiplier": float(np.mean(multipliers)) if multipliers else None,
    }


def driving(game: Crossing, one: Learner, seed: int) -> dict[str, float]:
    """How the cars drive in games that are the same for all."""
    state, random = game.begin(EVALUATED, torch.Generator().manual_seed(10**6)), torch.Generator().manual_seed(seed)
    spacing, least, speed, crashed, cost, reward = [], [], [], [], [], []
    for _ in range(game.horizon):
        draw, _ = one.act(game.see(state), random)
        state, outcome = game.step(state, one.head.action(draw))
        places = state.cars[..., :2]
        nearest = (torch.cdist(places, places) + 1e3 * torch.eye(game.agents)).amin(2)
        spacing.append(nearest)
        least.append(nearest.amin(1))
        speed.append(state.cars[..., 3])
        crashed.append(least[-1] < game.terms.crash_distance)
        cost.append(outcome.cost)
        reward.append(outcome.reward)
    return {
        "return": float(torch.stack(reward).sum(0).mean()),
        "mean_spacing": float(torch.stack(spacing).mean()),
        "spacing": float(torch.stack(least).amin(0).mean()),
        "near": float(torch.stack(cost).mean()),
        "speed": float(torch.stack(speed).mean()),
        "crashes": float(torch.stack(crashed).any(0).float().mean()),
    }


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


def spread(values: list[float], decimals: int = 2) -> str:
    told = f"{np.mean(values):.{decimals}f}"
    return told + (f" ± {np.std(values, ddof=1):.{decimals}f}" if len(values) > 1 else "")


def gap_table(results: dict[Run, dict[str, Any]], seeds: list[int]) -> list[str]:
    lines = ["| method | gap after 100 | 200 episodes | return | least spacing, m | speed, m/s | games with a crash |"]
    lines.append("|" + "---|" * 7)
    for method, (_, _, looks) in METHODS.items():
        own = [results[Run(method, seed, looks)] for seed in seeds if Run(method, seed, looks) in results]
        gaps = {look: spread([one["gaps"][looks.index(look)] for one in own]) for look in looks}
        cells = [gaps.get(look, "–") for look in (100, 200)]
        cells += [spread([one[key] for one in own]) for key in ("return", "spacing", "speed", "crashes")]
        lines.append(f"| {method} | {' | '.join(cells)} |")
    lines.append("")
    for one, other in (("trafficgamer", "mappo"), ("trafficgamer, no magnet", "mappo"), ("cce-masac", "masac")):
        looks = METHODS[one][2]
        for number, look in enumerate(looks):
            pairs = [[results[Run(name, seed, looks)]["gaps"][number] for name in (one, other)] for seed in seeds]
            means = np.mean(pairs, axis=0)
            lines.append(
                f"- Gap of {one} ÷ {other} after {look} episodes: {means[0] / means[1]:.2f} of the means; smaller in "
                f"{sum(a < b for a, b in pairs)} of {len(pairs)} seeds."
            )
    return lines


def grid_table(results: dict[Run, dict[str, Any]], grid: list[Run]) -> list[str]:
    seeds = sorted({run.seed for run in grid})
    own = {cell: [results[run] for run in grid if (run.distance, run.confidence) == cell] for cell in CELLS}  # by seed
    heads = ["distance, m", "confidence", *(head for head, _ in COLUMNS.values())]
    lines = [f"| {' | '.join(heads)} |", "|" + "---|" * len(heads)]
    for (distance, confidence), runs in own.items():
        cells = [spread([one[key] for one in runs], decimals) for key, (_, decimals) in COLUMNS.items()]
        lines.append(f"| {distance:g} | {confidence:g} | {' | '.join(cells)} |")
    lines.append("")
    for name, cells_of in TRENDS.items():
        told = []
        for key in ("mean_spacing", "spacing", "speed", "near", "multiplier"):
            values = np.array([[one[key] for one in own[cell]] for cell in cells_of])  # [cells, seeds]
            steps, means = np.diff(values, axis=0), values.mean(1)
            told.append(
                f"{COLUMNS[key][0]} × {means[-1] / means[0]:.2f} (rises at both steps in {int((steps > 0).all(0).sum())}, "
                f"falls in {int((steps < 0).all(0).sum())} of {len(seeds)} seeds)"
            )
        lines.append(f"- From the least to the highest {name}: {'; '.join(told)}.")
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=list(range(10)))
    parser.add_argument("--grid", type=int, default=10, help="seeds of each constraint and confidence")
    parser.add_argument("--processes", type=int, default=os.cpu_count())
    parser.add_argument("--runs", type=Path, default=Path("runs/crossing"))
    parser.add_argument("--out", type=Path, default=Path("docs/results"))
    given = parser.parse_args()
    gaps = [
        Run(method, seed, looks)
        for seed in given.seeds
        for method, (_, _, looks) in METHODS.items()
        if method != SLOW or seed in given.seeds[:3]
    ]
    grid = [
        Run("trafficgamer", seed, (GRID,), distance, confidence, BITING, gap=False)
        for seed in given.seeds[: given.grid]
        for distance, confidence in CELLS
    ]
    results = all_done([*gaps, *grid], given.runs, given.processes)
    command = f"python bench/crossing.py --seeds {' '.join(map(str, given.seeds))} --grid {given.grid}"
    lines = ["### crossing", "", f"`{command}`", "", *gap_table(results, given.seeds), "", *grid_table(results, grid)]
    given.out.mkdir(parents=True, exist_ok=True)
    (given.out / "crossing.md").write_text("\n".join(lines) + "\n")
    told = [{**vars(run), **found} for run, found in results.items()]
    (given.out / "crossing.json").write_text(json.dumps(told, indent=1) + "\n")
    print("\n".join(lines))


if __name__ == "__main__":
    main()
