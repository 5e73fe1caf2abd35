"""`throng worldmodel …`: train a world model on driving scenes, and see how well it predicts."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table

from ..scenarios.errors import InputError
from .cli_options import console

if TYPE_CHECKING:
    from ..policies.driving.tokens import SceneTokens

worldmodel_app = typer.Typer(
    no_args_is_help=True,
    help="World models: what agents of a driving scene may do in the next seconds (TrafficGamer, Fig. 11).",
)
Files = Annotated[list[Path], typer.Argument(help="Files with scenes, or folders with them anywhere below.")]


@worldmodel_app.command("train")
def train(
    files: Files,
    out: Annotated[Path, typer.Option(help="Folder for the model and its checkpoints; goes on with what is there.")],
    held_out: Annotated[
        list[Path] | None,
        typer.Option(
            help="Files or folders that are only evaluated on, after every epoch; may be given several times."
        ),
    ] = None,
    epochs: Annotated[int, typer.Option(min=1, help="How often every scene is seen.")] = 20,
    hidden: Annotated[
        int, typer.Option(min=8, help="Width; 96: a million parameters; 240, 8 heads, 2 decoder layers: QCNet's 7.7.")
    ] = 96,
    heads: Annotated[int, typer.Option(min=1, help="Of attention; they divide the width.")] = 6,
    decoder_layers: Annotated[int, typer.Option(min=1, help="Of the decoder.")] = 1,
    modes: Annotated[int, typer.Option(min=1, help="Futures of each agent.")] = 6,
    batch: Annotated[int, typer.Option(min=1, help="Scenes in an update, of each worker.")] = 8,
    learning_rate: Annotated[float, typer.Option(help="At its highest.")] = 1e-3,
    workers: Annotated[int, typer.Option(min=1, help="Ray Train's workers, each on a share of the scenes.")] = 1,
    gpu: Annotated[bool, typer.Option("--gpu", help="A GPU for every worker.")] = False,
    address: Annotated[
        str, typer.Option(help="Of Ray; `local` starts one here, `auto` takes the one that runs.")
    ] = "local",
    seed: Annotated[int, typer.Option(min=0, help="Of weights and draws.")] = 0,
) -> None:
    """Train on scenes of any of the formats; the same command again goes on where it stopped.

    Scenes that cannot be read or have no map are listed and left out. The model is `model.safetensors` and `model.json`.
    """
    from ..policies.driving.world_model import WorldModelSettings
    from .world_training import Epoch, TrainingSettings, train_world_model

    if hidden % heads:
        raise InputError(f"--hidden {hidden} cannot be divided among --heads {heads}")
    learnt, apart = _read(files), _read(held_out or [])
    both = {one.name for one in learnt} & {one.name for one in apart}
    if both:
        raise InputError(f"scene {min(both)!r} is in what is held out, too: what is learnt from cannot be evaluated on")
    settings = TrainingSettings(
        WorldModelSettings(hidden, heads, decoder_layers=decoder_layers, modes=modes), epochs=epochs, batch=batch,
        learning_rate=learning_rate, seed=seed, workers=workers, gpu=gpu,
    )  # fmt: skip
    console.print(f"{len(learnt)} scenes to learn from, {len(apart)} held out", highlight=False)

    def heard(epoch: Epoch) -> None:
        left = (epochs - epoch.epoch) * epoch.seconds
        told = "" if math.isnan(epoch.held_out_min_fde) else f" · held out {epoch.held_out_min_fde:.2f} m"
        console.print(
            f"epoch {epoch.epoch} of {epochs} · loss {epoch.loss:.3f} · minFDE {epoch.min_fde:.2f} m{told} · "
            f"{epoch.seconds:.0f} s, about {int(left // 60)}:{int(left % 60):02d} left",
            highlight=False,
        )

    folder = train_world_model(learnt, apart, settings, out, address, heard)
    console.print(f"model: {folder}", highlight=False, soft_wrap=True)


@worldmodel_app.command("evaluate")
def evaluate(
    model: Annotated[
        list[Path], typer.Option(help="Folder of a model; several (trained with other seeds) give mean and deviation.")
    ],
    files: Files,
    out: Annotated[Path | None, typer.Option(help="JSON file for the numbers.")] = None,
) -> None:
    """Compare models with constant velocity and constant turning: Argoverse's minADE, minFDE, miss rate and brier-minFDE.

    Of the focal agents of each scene, those who are seen to the end of the six seconds; of scenes without any, of everybody.
    """
    from ..policies.driving.evaluation import Errors, by_extrapolation, by_model, errors_of
    from ..policies.driving.model_file import load_model

    models = [load_model(folder) for folder in model]
    futures = {one.settings.future for one in models}
    if len(futures) > 1:
        raise InputError("these models predict for times of different lengths; evaluate them apart")
    (future,) = futures
    scenes = _read(files)
    rows: dict[str, list[Errors]] = {}
    try:
        for name, turning in (("constant velocity", False), ("constant turn", True)):
            rows[name] = [errors_of(scenes, by_extrapolation(turning, future), future)]
        rows["world model"] = [errors_of(scenes, by_model(one), future) for one in models]
    except ValueError as error:
        raise InputError(str(error)) from error
    found = {name: {key: [one.means()[key] for one in many] for key in many[0].means()} for name, many in rows.items()}
    table = Table(box=None, pad_edge=False)
    for heading in ("", "minADE, m", "minFDE, m", "MR", "brier-minFDE, m", "minFDE ÷ constant velocity"):
        table.add_column(heading, justify="left" if not heading else "right")
    plain = found["constant velocity"]["minFDE"][0]
    for name, values in found.items():
        cells = [_spread(values[key]) for key in ("minADE", "minFDE", "MR", "brier-minFDE")]
        table.add_row(name, *cells, _spread([one / plain for one in values["minFDE"]]))
    console.print(table)
    agents = len(rows["constant velocity"][0])
    console.print(
        f"{agents} agents of {len(scenes)} scenes, {future / 10:g} s; of the models K = {models[0].settings.modes}",
        highlight=False,
    )
    if out is not None:
        told = {"agents": agents, "scenes": len(scenes), "seconds": future / 10, "errors": found}
        out.write_text(json.dumps(told, indent=1) + "\n")


def _spread(values: list[float]) -> str:
    from statistics import mean, stdev

    return f"{mean(values):.2f}" + (f" ± {stdev(values):.2f}" if len(values) > 1 else "")


def _read(paths: list[Path]) -> list[SceneTokens]:
    """All scenes below some paths that can be used, in the order of their names; the others are listed."""
    from ..policies.driving.tokens import tokens_of
    from ..scenarios.driving.files import read_scenes, scene_files

    found: list[SceneTokens] = []
    wrong: list[str] = []
    for path in scene_files(paths) if paths else []:
        try:
            for scene in read_scenes(path):
                try:
                    found.append(tokens_of(scene))
                except InputError as error:
                    wrong.append(str(error))
        except InputError as error:
            wrong.append(str(error))
    for message in wrong:
        console.print(f"left out: {message}", highlight=False, markup=False, soft_wrap=True)
    if paths and not found:
        raise InputError("no scene that a world model can use; `throng scenes check` says what is in files")
    return found
