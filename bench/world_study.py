"""How well do world models predict? Pre-training on SUMO's scenes and recordings, evaluation on scenes held apart.

    python bench/world_study.py --sumo town examples/pasubio.yaml --recorded ../shared/data/scenes --seeds 0 1 2

SUMO scenes are made from each case, those of --sumo-held-out only to be evaluated on. Of the recordings of each kind every
fourth is held apart; of INTERACTION, which is one long recording, the last quarter. Nothing of them is learnt from.
Scenes are made once, models that are trained are not trained again, and a training that was stopped goes on.
"""

from __future__ import annotations

import argparse
import json
from collections import defaultdict
from pathlib import Path

import numpy as np
from rich.console import Console
from throng.platform.progress import Progress
from throng.platform.scenes import Wanted, scenes_from_sumo
from throng.platform.world_training import Epoch, TrainingSettings, train_world_model
from throng.policies.driving.evaluation import Errors, Predictor, by_extrapolation, by_model, errors_of
from throng.policies.driving.model_file import load_model
from throng.policies.driving.tokens import SceneTokens, tokens_of
from throng.policies.driving.world_model import WorldModelSettings
from throng.scenarios.driving.files import read_scenes, scene_files
from throng.scenarios.errors import InputError

EVERY = 4
LONG = "interaction"  # one recording, cut into scenes that follow each other


def made(case: str, count: int, seed: int, folder: Path, console: Console) -> list[SceneTokens]:
    """Scenes of a case; there from an earlier time, or made now."""
    name = Path(case).name.split(".")[0]
    where = folder / f"{name}-{count}-{seed}"
    if not (where / "complete").exists():
        config = None if case == "town" else Path(case)
        with Progress(console) as progress:
            scenes_from_sumo(config, None, 0.1, Wanted(count, seed=seed), where, progress)
        (where / "complete").touch()
    return [tokens_of(one) for path in scene_files([where]) for one in read_scenes(path)]


def recorded(folder: Path) -> tuple[list[SceneTokens], dict[str, list[SceneTokens]]]:
    """What is learnt from, and what is held apart, by the kind of the recording."""
    found: dict[str, dict[str, SceneTokens]] = defaultdict(dict)
    for path in scene_files([folder]):
        try:
            for scene in read_scenes(path):
                kind = "womd" if scene.source.startswith(("womd", "scenarionet")) else scene.source
                try:  # the same scene in two formats is one
                    found[kind].setdefault(scene.name, tokens_of(scene))
                except InputError as error:
                    print(f"left out: {error}")
        except InputError as error:
            print(f"left out: {error}")
    learnt, apart = [], {}
    for kind, scenes in found.items():
        names = sorted(scenes)
        last = set(names[-(len(names) // EVERY) :]) if kind == LONG else set(names[EVERY - 1 :: EVERY])
        learnt += [scenes[name] for name in names if name not in last]
        if last:
            apart[kind] = [scenes[name] for name in names if name in last]
    return learnt, apart


def cells(name: str, many: list[Errors], plain: Errors) -> str:
    def spread(values: list[float]) -> str:
        return f"{np.mean(values):.2f}" + (f" ± {np.std(values, ddof=1):.2f}" if len(values) > 1 else "")

    means = [one.means() for one in many]
    columns = [[one[key] for one in means] for key in means[0]]
    columns.append([one["minFDE"] / plain.means()["minFDE"] for one in means])
    return f"| {name} | {' | '.join(spread(one) for one in columns)} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sumo", nargs="+", default=["town"], help="cases whose traffic is learnt from")
    parser.add_argument("--sumo-held-out", nargs="+", default=[], help="cases that are only evaluated on")
    parser.add_argument("--scenes", type=int, default=150, help="of each case")
    parser.add_argument("--recorded", type=Path, help="folder with recordings of any kind")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="of weights and draws")
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--runs", type=Path, default=Path("runs/worldmodel"), help="where scenes and models go")
    parser.add_argument("--out", type=Path, default=Path("docs/results"), help="where the table goes")
    given = parser.parse_args()
    console = Console()
    learnt: list[SceneTokens] = []
    apart: dict[str, list[SceneTokens]] = {}
    for case in given.sumo:
        learnt += made(case, given.scenes, 0, given.runs, console)
    for case in given.sumo_held_out:
        apart[f"SUMO: {Path(case).name.split('.')[0]}"] = made(case, given.scenes // EVERY, 1, given.runs, console)
    if given.recorded:
        more, held = recorded(given.recorded)
        learnt += more
        apart |= held
    both = {one.name for one in learnt} & {one.name for some in apart.values() for one in some}
    assert not both, f"learnt from and held apart: {sorted(both)[:3]}"
    settings = WorldModelSettings()
    everybody = [one for some in apart.values() for one in some]
    predictors: dict[str, list[Predictor]] = {
        "constant velocity": [by_extrapolation(False, settings.future)],
        "constant turn": [by_extrapolation(True, settings.future)],
        "world model": [],
    }
    for seed in given.seeds:

        def heard(epoch: Epoch, seed: int = seed) -> None:
            console.print(f"seed {seed}, epoch {epoch.epoch} of {given.epochs}: loss {epoch.loss:.3f}, minFDE "
                          f"{epoch.min_fde:.2f}, held out {epoch.held_out_min_fde:.2f} m, {epoch.seconds:.0f} s")  # fmt: skip

        training = TrainingSettings(settings, epochs=given.epochs, seed=seed)
        folder = train_world_model(learnt, everybody, training, given.runs / f"seed{seed}", "local", heard)
        predictors["world model"].append(by_model(load_model(folder)))
    lines = [
        "### worldmodel", "",
        f"`python bench/world_study.py --sumo {' '.join(given.sumo)} --sumo-held-out {' '.join(given.sumo_held_out)} "
        f"--scenes {given.scenes}{' --recorded FOLDER' if given.recorded else ''} "
        f"--seeds {' '.join(map(str, given.seeds))} --epochs {given.epochs}`", "",
        f"Learnt from {len(learnt)} scenes; {settings.future / 10:g} s ahead, K = {settings.modes}; mean ± standard "
        "deviation over seeds.", "",
    ]  # fmt: skip
    data = {}
    for kind, scenes in {**apart, "all": everybody}.items():
        try:
            errors = {
                name: [errors_of(scenes, one, settings.future) for one in some] for name, some in predictors.items()
            }
            # One guess against one guess.
            errors["world model, its likeliest mode"] = [
                errors_of(scenes, one, settings.future, modes=1) for one in predictors["world model"]
            ]
        except ValueError as error:
            lines += [f"{kind}: {error}", ""]
            continue
        plain = errors["constant velocity"][0]
        lines += [
            f"{kind}: {len(plain)} agents of {len(scenes)} scenes", "",
            "| | minADE, m | minFDE, m | MR | brier-minFDE, m | minFDE ÷ constant velocity |", "|" + "---|" * 6,
            *(cells(name, many, plain) for name, many in errors.items()), "",
        ]  # fmt: skip
        data[kind] = {name: [float(one.min_fde.mean()) for one in many] for name, many in errors.items()}
    given.out.mkdir(parents=True, exist_ok=True)
    (given.out / "worldmodel.md").write_text("\n".join(lines))
    (given.out / "worldmodel.json").write_text(json.dumps(data, indent=1) + "\n")
    print("\n".join(lines))


if __name__ == "__main__":
    main()
