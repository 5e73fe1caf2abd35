"""What a sweep searches: a YAML file, checked against the configuration it varies before anything runs.

A case, or `set`, that names a `system` makes it a sweep of fine-tunings, else it is one of searches of MASDiff.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import numpy as np
import yaml
from pydantic import Discriminator, Field, Tag, ValidationError, ValidationInfo, field_validator, model_validator

from ..platform.config import Config, Settings, explain, load_config, read_yaml, settings_of, validated
from ..platform.finetuning_config import FineTuningConfig
from ..scenarios.errors import InputError
from .experiments import objective

Value = bool | int | float | str | None | list[Any]
Point = dict[str, Value]  # a value for each key


class Range(Settings):
    """Numbers from `low` to `high`, both included; whole ones, if both bounds are whole."""

    low: int | float
    high: int | float
    scale: Literal["linear", "log"] = "linear"

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if not self.low < self.high:
            raise ValueError("low must be below high")
        if self.scale == "log" and self.low <= 0:
            raise ValueError("a log scale needs low above 0")
        return self

    @property
    def whole(self) -> bool:
        return isinstance(self.low, int) and isinstance(self.high, int)

    def at(self, share: float) -> int | float:
        """The number at `share` of the way from low to high, 0 to 1."""
        if self.scale == "log":
            value = math.exp(math.log(self.low) + share * (math.log(self.high) - math.log(self.low)))
        else:
            value = self.low + share * (self.high - self.low)
        value = min(max(value, self.low), self.high)
        return round(value) if self.whole else float(f"{value:.4g}")

    def share(self, value: float) -> float:
        """How far from low to high a number is, 0 to 1."""
        if self.scale == "log":
            return math.log(value / self.low) / math.log(self.high / self.low)
        return (value - self.low) / (self.high - self.low)


Axis = Annotated[
    Annotated[Range, Tag("range")] | Annotated[list[Any], Tag("list")],
    Discriminator(lambda given: "list" if isinstance(given, list) else "range"),
]


class Spec(Settings):
    """A sweep: which case, which settings vary how, and how they are chosen."""

    name: str = Field("sweep", pattern=r"^[\w.-]+$")
    case: Path | None = Field(None, description="configuration of the case; without one, the built-in town")
    profile: str = Field("fast", description="defaults below the case: fast, paper")
    sets: tuple[str, ...] = Field((), alias="set", description="settings of all trials, as --set takes them")
    space: dict[str, Axis] = Field(description="settings that vary: a list of values, or {low, high, scale}")
    search: Literal["random", "grid", "optuna", "population"] = Field(
        "random",
        description="how points are chosen: at random, all combinations of lists, by Optuna's TPE, or as children of the "
        "best points so far",
    )
    samples: int = Field(16, ge=1, description="trials; of a grid, at most")
    stop_early: bool = Field(True, description="stop trials that do worse than others at the same budget (ASHA)")
    seed: int = Field(0, ge=0, description="of the choice of points; the search seed of all trials is `seed` in `set`")
    concurrent: int | None = Field(None, ge=1, description="trials at once; by default as many as there is room for")

    @field_validator("case", mode="after")
    @classmethod
    def _relative_to_file(cls, value: Path | None, info: ValidationInfo) -> Path | None:
        base = (info.context or {}).get("base", Path())
        return value if value is None or value.is_absolute() else (base / value).resolve()

    @model_validator(mode="after")
    def _searchable(self) -> Self:
        if not self.space:
            raise ValueError("`space` names no setting")
        ranges = [key for key, axis in self.space.items() if isinstance(axis, Range)]
        if self.search == "grid" and ranges:
            raise ValueError(f"a grid needs lists of values; {ranges[0]} is a range")
        empty = [key for key, axis in self.space.items() if isinstance(axis, list) and not axis]
        if empty:
            raise ValueError(f"{empty[0]}: the list is empty")
        return self

    @property
    def fine_tunes(self) -> bool:
        return "system" in self.space or "system" in settings_of(self.case, list(self.sets), {})

    def config(self, point: Point, more: tuple[str, ...] = ()) -> Config | FineTuningConfig:
        """The configuration of a trial.

        Hidden drivers of a synthetic case route and learn as before anything varied: else every trial would have a truth of
        its own, and errors could not be compared.
        """
        if self.fine_tunes:
            if self.profile != "fast":
                raise InputError(f"profile: {self.profile} is one of MASDiff; a fine-tuning has none")
            varied = [f"{key}={_flow(value)}" for key, value in point.items()]
            return validated(FineTuningConfig, settings_of(self.case, [*self.sets, *varied, *more], {}), self.case)
        base = load_config(self.case, list(self.sets), self.profile)
        truth = {
            f"target.{name}": getattr(base, name).model_dump(mode="json")
            for name in ("navigation", "learner")
            if base.target.observed is None and getattr(base.target, name) is None
        }
        sets = [f"{key}={_flow(value)}" for key, value in {**truth, **point}.items()]
        return load_config(self.case, [*self.sets, *sets, *more], self.profile)

    def corners(self) -> list[Point]:
        """Points that show every value of every list and both ends of every range, the rest at their first."""

        def ends(axis: Range | list[Any]) -> list[Value]:
            return [axis.low, axis.high] if isinstance(axis, Range) else list(axis)

        first = {key: ends(axis)[0] for key, axis in self.space.items()}
        return [{**first, key: value} for key, axis in self.space.items() for value in ends(axis)]

    def sample(self, rng: np.random.Generator) -> Point:
        """A point at random."""
        return {
            key: axis.at(rng.random()) if isinstance(axis, Range) else axis[int(rng.integers(len(axis)))]
            for key, axis in self.space.items()
        }


def load_spec(path: Path, overrides: list[str] | None = None) -> Spec:
    """Reads a sweep and checks every value it may choose; `overrides` are settings of all trials.

    Raises:
        InputError: unreadable, unknown keys, or a setting or value that the configuration of the case does not take.
    """
    data = read_yaml(path)
    data.setdefault("name", path.stem)
    try:
        spec = Spec.model_validate(data, context={"base": path.parent})
    except ValidationError as error:
        raise InputError(explain(str(path), error, Spec)) from error
    spec = spec.model_copy(update={"sets": (*spec.sets, *(overrides or []))})
    for point in spec.corners():
        try:
            judged = objective(spec.config(point))
        except InputError as error:
            raise InputError(f"{path}: space: {error}") from error
        if judged != objective(spec.config(spec.corners()[0])):
            raise InputError(
                f"{path}: space: evaluation.iterations: 0 measures no gaps, so trials could not be compared"
            )
    return spec


def _flow(value: Any) -> str:
    """YAML on one line."""
    return yaml.safe_dump(value, default_flow_style=True, width=math.inf).strip().removesuffix("\n...")
