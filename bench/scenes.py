"""The fine-tuners on a Waymo scene, one of the built-in town and an Argoverse scene: the tables `scenes-*` of docs/results.

    python bench/scenes.py --recorded ../shared/data/scenes --seeds 0 1 2 3 4

A world model is trained first, on scenes of another simulation of the town and all recorded Waymo and Argoverse scenes but
those of the study (--epochs times). Then `throng compare` runs for each scene: both algorithms of TrafficGamer's paper, for
100 episodes and for the paper's 300, both of CCE-MASAC's (with critics that are fast enough, see bench/crossing.py),
TrafficGamer with and without its magnet and bonus, and for three distances times three confidences, with multipliers that
bite within its 60 episodes. --processes of these work at once, each on one (scene, seed); what is finished is not done
again. An estimate for all of it is eleven hours of two processors: --scenes and --tables choose.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import product
from pathlib import Path

THRONG = Path(sys.executable).with_name("throng")
WAYMO = "womd/637f20cafde22ff8.tfrecord"
ARGOVERSE = "av2_sensor/7fab2350-7eaf-3b7e-a39d-6937a4c1bede/annotations.feather"
SCENES = {
    "womd": ("examples/trafficgamer_waymo.yaml", WAYMO),
    "town": ("examples/trafficgamer_sumo.yaml", None),
    "av2": ("examples/trafficgamer_av2.yaml", ARGOVERSE),
}
LEARNT = ("womd/*.json.gz", "womd/*.sd.npz", "av2_mf/0a0a*/scenario_*.parquet")
SIZE = ("scene.agents=4", "scene.most=16")
GAPS = ("evaluation.iterations=20", "evaluation.evaluated=64", "evaluation.pictures=0")
# With the default, 0.01, a multiplier rises by a hundredth of an episode's costs.
BITING = ("algorithm.multiplier_rate=0.3", "evaluation.iterations=0", "evaluation.pictures=1")
PARTS = ("--vary", "algorithm.magnet=0,0.05", "--vary", "algorithm.bonus=0,0.1")
NINE = ("--vary", "terms.distance_limit=3,7,11", "--vary", "algorithm.confidence=0,0.5,0.9")


@dataclass(frozen=True)
class Table:
    """One comparison on each scene."""

    methods: str
    episodes: int
    settings: tuple[str, ...] = GAPS
    more: tuple[str, ...] = ()


TABLES = {
    "ppo": Table("mappo,trafficgamer", 100),
    "long": Table("mappo,trafficgamer", 300, (*GAPS, "evaluation.every=100")),
    "sac": Table("masac,cce-masac", 60, (*GAPS, "algorithm.critic_rate=1e-3", "algorithm.polyak=0.05")),
    "parts": Table("trafficgamer", 100, GAPS, PARTS),
    "grid": Table("trafficgamer", 60, BITING, NINE),
}


def throng(*words: object, log: Path | None = None) -> None:
    command = [str(word) for word in (THRONG, *words)]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "RAY_USAGE_STATS_ENABLED": "0"}
    if log is None:
        subprocess.run(command, check=True, env=environment)
        return
    with log.open("a") as file:
        subprocess.run(command, check=True, env=environment, stdout=file, stderr=subprocess.STDOUT)


def world_model(recorded: Path, runs: Path, epochs: int) -> None:
    """The study's; trained if it is not there."""
    scenes, folder = runs / "town-scenes", runs / "world-model"
    if not scenes.exists():
        throng("scenes", "from-sumo", "--scenes", 120, "--seed", 1, "--begin", 900, "--out", scenes)
    learnt = [path for pattern in LEARNT for path in sorted(recorded.glob(pattern))]
    apart = [word for file in (WAYMO, ARGOVERSE) for word in ("--held-out", recorded / file)]
    throng("worldmodel", "train", scenes, *learnt, *apart, "--hidden", 48, "--epochs", epochs, "--out", folder)


def compared(scene: str, table: str, seeds: list[int], name: str, given: argparse.Namespace) -> list[object]:
    """Words of one `throng compare`."""
    config, file = SCENES[scene]
    one, base = TABLES[table], Path(config).parent  # paths in settings are relative to the configuration's folder
    model = os.path.relpath(given.runs / "world-model", base)
    sets = [
        *SIZE,
        f"training.episodes={one.episodes}",
        *one.settings,
        f"world_model.folder={model}",
        "workers.rollouts=0",
    ]
    if file is not None:
        sets.append(f"scene.file={os.path.relpath(given.recorded / file, base)}")
    flags = [word for text in sets for word in ("--set", text)]
    where = ["--seeds", ",".join(map(str, seeds)), "--out", given.runs / f"{scene}-{table}", "--name", name]
    return ["compare", config, "--methods", one.methods, *one.more, *flags, *where]


def published(folder: Path, name: str, out: Path, recorded: bool) -> None:
    """Copies a table, its numbers and pictures to `out`; not a recording's map, which is not ours to publish."""
    for path in folder.glob(f"{name}*"):
        if not (recorded and path.stem.endswith("-scenes")):
            shutil.copy(path, out / path.name)
    if recorded:
        text = (out / f"{name}.md").read_text()
        (out / f"{name}.md").write_text(text.replace(f"\n\n![{name}-scenes]({name}-scenes.png)", ""))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--recorded", type=Path, default=Path("../shared/data/scenes"), help="folder of the recorded scenes"
    )
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    parser.add_argument("--scenes", nargs="+", choices=SCENES, default=list(SCENES))
    parser.add_argument("--tables", nargs="+", choices=TABLES, default=list(TABLES))
    parser.add_argument("--epochs", type=int, default=30, help="of the world model")
    parser.add_argument("--processes", type=int, default=os.cpu_count())
    parser.add_argument("--runs", type=Path, default=Path("runs/scenes"))
    parser.add_argument("--out", type=Path, default=Path("docs/results"))
    given = parser.parse_args()
    given.runs.mkdir(parents=True, exist_ok=True)
    world_model(given.recorded, given.runs, given.epochs)
    units = [(scene, table, seed) for table, seed, scene in product(given.tables, given.seeds, given.scenes)]

    def work(unit: tuple[str, str, int]) -> None:
        scene, table, seed = unit
        name = f"{scene}-{table}-seed{seed}"
        throng(*compared(scene, table, [seed], f"seed{seed}", given), log=given.runs / f"{name}.log")
        print(f"done: {name}", flush=True)

    with ThreadPoolExecutor(given.processes) as pool:
        list(pool.map(work, units))
    for table, scene in product(given.tables, given.scenes):
        name = f"scenes-{scene}-{table}"
        throng(*compared(scene, table, given.seeds, name, given))
        published(given.runs / f"{scene}-{table}", name, given.out, recorded=SCENES[scene][1] is not None)


if __name__ == "__main__":
    main()
