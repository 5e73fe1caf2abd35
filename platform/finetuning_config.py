"""The configuration of a fine-tuning: a recorded scene, a world model, and what learns to drive in it."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, TypeAdapter, ValidationError, ValidationInfo, field_validator, model_validator

from ..policies.marl.algorithms import ALGORITHMS
from ..policies.marl.driving import DrivingTerms
from ..policies.marl.exploitability import ResponseBudget
from ..scenarios.driving.insertion import Newcomer
from .config import RunConfig, Settings, WorkersConfig

System = Literal["mappo", "trafficgamer", "masac", "cce-masac", "rllib-ppo"]
RLLIB = "rllib-ppo"  # RLlib's PPO with MAPPO's actors and settings, see `rllib_run`


class NewcomerConfig(Settings):
    """A vehicle that is put into the scene."""

    lane: str = Field(description="the recording's name of a lane")
    at: float = Field(0.0, ge=0, description="metres from its beginning")
    speed: float = Field(1.0, ge=0, description="m/s")
    ahead: float = Field(50.0, gt=0, description="metres along the lanes to where it wants to be")

    def newcomer(self) -> Newcomer:
        return Newcomer(self.lane, self.at, self.speed, self.ahead)


class SumoSceneConfig(Settings):
    """A scene that is cut out of SUMO traffic."""

    config: Path | None = Field(None, description="a case; by default the built-in town")
    begin: float = Field(900.0, ge=0, description="second from which scenes are cut")
    scenes: int = Field(8, ge=1, description="that are looked at; the busiest is taken")
    seed: int = Field(0, ge=0)

    @field_validator("config", mode="after")
    @classmethod
    def _relative_to_file(cls, value: Path | None, info: ValidationInfo) -> Path | None:
        return _resolved(value, info)


class SceneConfig(Settings):
    """Which scene, and who is driven in it."""

    file: Path | None = Field(None, description="of any of the formats that `throng scenes check` knows")
    name: str | None = Field(None, description="which scene of the file; by default the first")
    sumo: SumoSceneConfig | None = Field(None, description="without `file`: a scene of SUMO traffic")
    agents: int = Field(
        5, ge=1, le=32, description="that are driven: those of `drive`, of `insert`, then who is nearest"
    )
    drive: tuple[str, ...] = Field((), description="ids of agents that are driven for certain")
    insert: tuple[NewcomerConfig, ...] = Field((), description="vehicles that were not there: new-1, new-2, …")
    goals: dict[str, tuple[float, float]] = Field(
        {}, description="where drivers want to be, by id: x, y as in the recording, metres; by default where they ended"
    )
    most: int = Field(32, ge=2, description="agents that are there at all, those nearest to who is driven")
    horizon: int | None = Field(None, ge=1, description="half seconds; by default to the record's end, at most 12")

    @field_validator("file", mode="after")
    @classmethod
    def _relative_to_file(cls, value: Path | None, info: ValidationInfo) -> Path | None:
        return _resolved(value, info)

    @model_validator(mode="after")
    def _one_source(self) -> SceneConfig:
        if self.file is not None and self.sumo is not None:
            raise ValueError("give either `file` or `sumo`")
        return self


class TermsConfig(Settings):
    """What driving pays, per half second, and the constraint."""

    distance_limit: float = Field(5.0, gt=0, description="metres to the nearest other driver that is to be kept")
    per_metre: float = Field(0.1, ge=0, description="lost for every metre (L1) from the goal")
    crash: float = Field(10.0, ge=0, description="lost by who is nearer than crash_distance to another's centre")
    crash_distance: float = Field(2.0, gt=0, description="metres")
    off_road: float = Field(10.0, ge=0)
    speeding: float = Field(0.5, ge=0, description="lost for every m/s above speed_limit")
    speed_limit: float = Field(15.0, gt=0, description="m/s")

    def terms(self) -> DrivingTerms:
        return DrivingTerms(**self.model_dump())


class TrainingConfig(Settings):
    """How long, and on how much."""

    episodes: int = Field(300, ge=1)
    rollouts: int = Field(32, ge=1, description="games of an episode")
    chunk: int = Field(8, ge=1, description="games of one call of a worker")


class EvaluationConfig(Settings):
    """What the result is measured with."""

    futures: int = Field(64, ge=2, description="generated scenes, for speeds, spacings and crashes")
    pictures: int = Field(3, ge=0, le=3, description="of these that are drawn: a picture and an animation each")
    every: int = Field(
        0, ge=0, description="episodes between gaps that are measured while training goes on; 0: at the end"
    )
    iterations: int = Field(40, ge=0, description="of PPO for each agent's best response; 0: gaps are not measured")
    rollouts: int = Field(32, ge=1, description="of each iteration")
    evaluated: int = Field(256, ge=2, description="games on which both policies are compared")

    def budget(self) -> ResponseBudget:
        return ResponseBudget(self.iterations, self.rollouts, self.evaluated)


class WorldModelConfig(Settings):
    """What drives everybody else and says what is seen."""

    folder: Path = Field(description="of a model that `throng worldmodel train` made")
    scenes: int = Field(0, ge=0, description="of SUMO traffic to train one on first, if the folder has none")
    epochs: int = Field(20, ge=1, description="of that training")

    @field_validator("folder", mode="after")
    @classmethod
    def _relative_to_file(cls, value: Path, info: ValidationInfo) -> Path:
        found = _resolved(value, info)
        assert found is not None
        return found


class FineTuningConfig(RunConfig):
    """One run of a fine-tuner."""

    system: System
    scene: SceneConfig = SceneConfig()
    world_model: WorldModelConfig
    terms: TermsConfig = TermsConfig()
    algorithm: dict[str, Any] = Field({}, description="settings of the algorithm; by default the papers'")
    training: TrainingConfig = TrainingConfig()
    evaluation: EvaluationConfig = EvaluationConfig()
    workers: WorkersConfig = WorkersConfig()

    @property
    def actors(self) -> str:
        """The key of `ALGORITHMS` whose actors and settings the system has."""
        return "mappo" if self.system == RLLIB else self.system

    @model_validator(mode="after")
    def _known_settings(self) -> FineTuningConfig:
        if self.system == RLLIB and self.evaluation.every:
            raise ValueError(f"evaluation.every: of {RLLIB} gaps are measured at the end; leave it out")
        known = [one.name for one in fields(ALGORITHMS[self.actors].settings)]
        unknown = [name for name in self.algorithm if name not in known]
        if unknown:
            raise ValueError(f"algorithm.{unknown[0]}: {self.system} has no such setting; it has {', '.join(known)}")
        self.settings()
        return self

    def settings(self) -> Any:
        """Of the algorithm."""
        try:
            return TypeAdapter(ALGORITHMS[self.actors].settings).validate_python(self.algorithm)
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(str(part) for part in first["loc"])
            raise ValueError(f"algorithm.{where}: {first['msg']} (got {first['input']!r})") from error


def _resolved(path: Path | None, info: ValidationInfo) -> Path | None:
    base = (info.context or {}).get("base", Path())
    return path if path is None or path.is_absolute() else (base / path).resolve()
