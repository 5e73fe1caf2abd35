"""The configuration of a run: YAML in, frozen and validated settings out.

Unknown keys are refused with the nearest right name; relative paths are relative to the file that names them.
"""

from __future__ import annotations

import difflib
import re
from pathlib import Path
from typing import Any, Literal, Self, TypeVar

import yaml
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)

from ..scenarios.errors import InputError

Device = Literal["cpu", "cuda"]
Rung = Literal["meso", "quiet", "micro"]
# Defaults that a case stands on; those of `fast` are in the models below.
PROFILES = {"fast": None, "paper": Path(__file__).parent.parent / "configs" / "masdiff_paper.yaml"}


class Settings(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class TownConfig(Settings):
    """The built-in town: 45 intersections, 114 directed roads."""

    vehicles: int = Field(1557, ge=1, description="trips; 1557, 2758 and 4423 drive 30, 60 and 90 minutes")
    minutes: int | None = Field(None, ge=1, description="length of the simulation; by default it follows the vehicles")
    seed: int = Field(0, ge=0, description="of the demand")


class ScenarioConfig(Settings):
    """What is simulated: the built-in town, or SUMO files of your own."""

    town: TownConfig | None = None
    net: Path | None = Field(None, description=".net.xml or .net.xml.gz")
    demand: tuple[Path, ...] = Field((), description=".rou.xml, trips or flow files, buses included")
    additional: tuple[Path, ...] = Field((), description="bus stops, signal programs, vehicle types, detectors")
    begin: float = Field(0.0, ge=0, description="second at which the simulation begins")
    minutes: int = Field(30, ge=1, le=1440, description="length of the simulation")
    step_length: float = Field(1.0, gt=0, le=1.0, description="seconds per simulation step")
    options: tuple[str, ...] = Field((), description="further options of the sumo command line")
    unreachable: Literal["error", "drop"] = Field("error", description="trips without a route")
    lanes: Literal["max", "sum"] = Field("max", description="a road's queue: of its longest lane, or of all lanes")

    @field_validator("net", "demand", "additional", mode="after")
    @classmethod
    def _relative_to_file(cls, value: Any, info: ValidationInfo) -> Any:
        base = (info.context or {}).get("base", Path())
        if isinstance(value, tuple):
            return tuple(_resolved(base, path) for path in value)
        return None if value is None else _resolved(base, value)

    @field_validator("step_length")
    @classmethod
    def _divides_a_minute(cls, value: float) -> float:
        if abs(60.0 / value - round(60.0 / value)) > 1e-6:
            raise ValueError("a minute must be a whole number of steps, e.g. 1, 0.5 or 0.25")
        return value

    @model_validator(mode="after")
    def _one_source(self) -> Self:
        if (self.town is None) == (self.net is None):
            raise ValueError("give either `town` (the built-in town) or `net` and `demand` (SUMO files)")
        if self.net is not None and not self.demand:
            raise ValueError("`net` needs `demand`: at least one route, trip or flow file")
        return self


class NavigationConfig(Settings):
    """How rewards become routes (MASDiff, Eq. 12)."""

    router: Literal["regret", "astar_q", "consistent"] = Field(
        "regret", description="Dijkstra on length and regret of Q, A* + Q (the paper), or Dijkstra on rewards"
    )
    heuristic: Literal["q", "advantage"] = Field("q", description="astar_q: bias of A*: Q, or Q - V")
    lambda_metres: float = Field(400.0, ge=0, description="metres of detour worth one s.d. of Q")
    replan: Literal["pretrip", "junction"] = Field("pretrip", description="routes fixed at departure, or decided live")


class LearnerConfig(Settings):
    """How a policy is learnt from rewards, offline (MASDiff, A.1)."""

    kind: Literal["vi", "soft_vi", "dqn", "iql"] = Field(
        "vi",
        description="value iteration, its soft form (random routes), a deep Q-network per vehicle, implicit Q-learning",
    )
    discount: float = Field(0.8, ge=0, lt=1, description="gamma")
    temperature: float = Field(0.2, gt=0, description="soft_vi: of the policy, in s.d. of reward")
    hidden: int = Field(16, ge=1, description="dqn, iql: units of each vehicle's network; 16 serves up to 8 ways on")
    updates: int = Field(600, ge=1, description="dqn, iql: gradient steps; more of them for a discount above 0.9")
    learning_rate: float = Field(0.02, gt=0, description="dqn, iql: at first; it falls linearly to zero")
    expectile: float = Field(0.995, ge=0.5, lt=1, description="iql: towards 1, V becomes the maximum over actions")
    device: Device = Field("cpu", description="dqn, iql: cpu or cuda; Ray gives each learner its share of the GPUs")


class TargetConfig(Settings):
    """The observed macro series, or how to make one."""

    observed: Path | None = Field(
        None, description="CSV or Parquet: road, minute, and queue, speed or count (or minute, lcc)"
    )
    kind: Literal["queue", "lcc"] = Field("queue", description="what a synthetic target consists of")
    truth: Literal["structured", "taste", "iid", "published"] = Field(
        "structured",
        description="without `observed`: hidden preferences (population, group and individual effects), the same and a taste "
        "for each connection that all share, an i.i.d. reward table, or the routes the demand files publish",
    )
    truth_seed: int = Field(0, ge=0, description="which hidden truth, and the seed of the observed simulation")
    navigation: NavigationConfig | None = Field(
        None, description="how hidden drivers choose their routes; by default as `navigation`, which the search uses"
    )
    learner: LearnerConfig | None = Field(None, description="how they learn; by default as `learner`")
    functional_speed: float | Literal["critical"] = Field(
        0.5, description="lcc: share of the reference speed above which a road counts as functional"
    )
    connectivity: Literal["weak", "strong"] = Field("weak", description="lcc: how functional roads must hang together")

    @field_validator("observed", mode="after")
    @classmethod
    def _relative_to_file(cls, value: Path | None, info: ValidationInfo) -> Path | None:
        return None if value is None else _resolved((info.context or {}).get("base", Path()), value)


class LatentConfig(Settings):
    """The preference model that evolves."""

    kind: Literal["hier", "token", "table"] = Field(
        "hier", description="shared effects, per-vehicle tokens, literal table"
    )
    groups: int = Field(8, ge=1, description="hier: origin-destination groups")
    connection_taste: int = Field(0, ge=0, description="hier: tastes for connections that all share, at most one each")
    tokens: int = Field(16, ge=1, description="token: numbers per vehicle")


class SearchConfig(Settings):
    """Algorithm 2: population, selection, mutation, budget."""

    proposals: Literal["evolution", "guided", "proxy", "random", "cma"] = Field(
        "evolution",
        description="where candidates come from: Algorithm 2; guided sampling without evolution (LDM_CFG), the same with a "
        "proxy of the error (LDM_PCFG); the prior (random search); CMA-ES",
    )
    generator: Literal["diffusion", "gan"] = Field(
        "diffusion", description="evolution: the model that proposes (gan: CGAN)"
    )
    learning: bool = Field(True, description="evolution: train that model; untrained, it draws from the prior")
    mutation: bool = Field(True, description="evolution: lines 10-13; without, all candidates are drawn by line 6")
    guidance: bool = Field(
        True,
        description="evolution: mutations also step towards the observed series, by ensemble Kalman regression on past "
        "simulations",
    )
    elitism: bool = Field(True, description="the best live on; without, they are remembered only")
    reuse: bool = Field(
        True, description="line 5 takes the traffic of line 12; without, it simulates the population again"
    )
    population: int = Field(24, ge=2, description="M, individuals per half-generation")
    budget: float = Field(64.0, gt=0, description="stop after this many micro-equivalent simulations")
    generations: int = Field(100, ge=1, description="stop after this many generations")
    patience: int = Field(10, ge=1, description="stop when the best has not improved for so many generations")
    ladder: tuple[Rung, ...] = Field(
        ("meso", "micro"), description="fidelities, cheapest first, ending in micro: of meso, quiet and micro"
    )
    screen: int = Field(8, ge=1, description="candidates drawn for each one simulated, ranked by their flows; 1: none")
    promote: float = Field(0.125, gt=0, le=1, description="share of each rung that climbs to the next")
    weight: Literal["rank", "linear"] = Field("rank", description="rank weights, or the paper's Eq. 8 (winsorised)")
    handover: Literal["mixed", "resample"] = Field("mixed", description="line 6: keep half of the population, or none")
    elites: int = Field(2, ge=1, description="kept unmutated, re-simulated with a fresh seed every generation")
    kept_first: float = Field(
        0.5, gt=0, lt=1, description="share of a parent's signal that mutation keeps, at the start"
    )
    kept_last: float = Field(0.95, gt=0, lt=1, description="the same at the end of the budget")
    kept_spread: float = Field(
        1.5,
        ge=0,
        description="decades over which the rest, what mutation does not keep, varies between children, downwards",
    )
    replay: int = Field(6, ge=1, description="generations of samples the diffusion model trains on")

    @model_validator(mode="after")
    def _ladder(self) -> Self:
        order = ("meso", "quiet", "micro")
        ranks = [order.index(rung) for rung in self.ladder]
        if not ranks or ranks != sorted(set(ranks)) or self.ladder[-1] != "micro":
            raise ValueError("ladder lists meso, quiet, micro in this order and ends in micro, e.g. [meso, micro]")
        if self.kept_first > self.kept_last:
            raise ValueError("kept_first must not exceed kept_last: mutation gets finer as the search goes on")
        return self


class DiffusionConfig(Settings):
    """The diffusion model (sizes the paper omits)."""

    steps: int = Field(50, ge=2)
    width: int = Field(256, ge=8)
    learning_rate: float = Field(1e-3, gt=0)
    updates: int = Field(100, ge=1, description="gradient steps per training")
    batch: int = Field(128, ge=2)
    prior_share: float = Field(0.1, ge=0, le=1, description="fresh N(0, I) in each batch")
    device: Device = Field("cpu", description="cpu or cuda")


class WorkersConfig(Settings):
    """Where it runs."""

    rollouts: int | None = Field(
        None, ge=0, description="SUMO workers; default: the CPUs there are; 0: in this process"
    )
    learners: int | None = Field(
        None,
        ge=1,
        description="learners; default: one for every 16 workers, which is enough for vi; dqn and iql want more",
    )
    memory: int = Field(
        512, ge=1, description="MiB that Ray reserves for each SUMO worker, each learner and the reward service"
    )
    address: str = Field(
        "local", description="local: start Ray here (in a job: its cluster); auto or ray://…: use a running one"
    )
    deadline: float = Field(600.0, gt=0, description="seconds one simulation may take")
    restarts: int = Field(
        8, ge=0, description="lost workers that are replaced before the run stops; one more for every 50 simulations"
    )
    recycle_after: int | None = Field(None, ge=1, description="simulations after which a worker is replaced as planned")
    recycle_growth: int | None = Field(
        1024, ge=1, description="MiB that a worker's memory may grow by before it is replaced as planned"
    )


class ReportConfig(Settings):
    seeds: int = Field(8, ge=2, description="fresh seeds of the final evaluation")
    reference_seeds: int = Field(4, ge=2, description="seeds of every floor and null")


class RunConfig(Settings):
    """What every run has."""

    name: str = Field("town", pattern=r"^[\w.-]+$", description="of the run's folder; default: the file's name")
    seed: int = Field(0, ge=0)

    def to_yaml(self) -> str:
        data = self.model_dump(mode="json", exclude_none=True)
        return yaml.safe_dump(data, sort_keys=False, allow_unicode=True)


class Config(RunConfig):
    """One run of MASDiff."""

    scenario: ScenarioConfig = ScenarioConfig(town=TownConfig())
    target: TargetConfig = TargetConfig()
    latent: LatentConfig = LatentConfig()
    navigation: NavigationConfig = NavigationConfig()
    learner: LearnerConfig = LearnerConfig()
    search: SearchConfig = SearchConfig()
    diffusion: DiffusionConfig = DiffusionConfig()
    workers: WorkersConfig = WorkersConfig()
    report: ReportConfig = ReportConfig()

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.target.truth == "published" and self.scenario.town is not None:
            raise ValueError("target.truth: published needs demand files with routes; the town has bare trips")
        return self


def _resolved(base: Path, path: Path) -> Path:
    return path if path.is_absolute() else (base / path).resolve()


def load_config(path: Path | None, overrides: list[str] | None = None, profile: str = "fast") -> Config:
    """Reads a YAML file (None: the built-in town) and applies `key.sub=value` overrides, whose values are YAML.

    `profile` "paper" puts other defaults below the file, those of configs/masdiff_paper.yaml; "fast" has none to put there.

    Raises:
        InputError: unknown profile, unreadable file, malformed YAML, unknown key (with the nearest right name), or a value
            out of range.
    """
    if profile not in PROFILES:
        raise InputError(f"--profile {profile}: no such profile; known: {', '.join(PROFILES)}")
    defaults = PROFILES[profile]
    data = settings_of(path, overrides, {} if defaults is None else read_yaml(defaults))
    if "system" in data:
        raise InputError(f"{path}: a fine-tuning ({data['system']}): this command is for runs of MASDiff")
    return validated(Config, data, path)


def settings_of(path: Path | None, overrides: list[str] | None, below: dict[str, Any]) -> dict[str, Any]:
    """What a file says (None: nothing) over what lies below it, and overrides over both; not validated."""
    data = below
    if path is not None:
        data = _over(data, {"name": re.sub(r"[^\w.-]", "-", path.stem), **read_yaml(path)})
    for override in overrides or []:
        _apply(data, override)
    return data


M = TypeVar("M", bound=RunConfig)


def validated(model: type[M], data: dict[str, Any], path: Path | None) -> M:
    """The configuration that a file's settings are; paths are relative to the file.

    Raises:
        InputError: what is wrong, an error a line.
    """
    source = str(path) if path is not None else "configuration"
    try:
        return model.model_validate(data, context={"base": path.parent if path else Path()})
    except ValidationError as error:
        raise InputError(explain(source, error, model)) from error


def read_yaml(path: Path) -> dict[str, Any]:
    """The mapping that a YAML file holds.

    Raises:
        InputError: it cannot be read, or holds something else.
    """
    try:
        loaded = yaml.safe_load(path.read_text())
    except OSError as error:
        raise InputError(f"{path}: cannot read the configuration ({error.strerror})") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: not valid YAML: {error}") from error
    if loaded is not None and not isinstance(loaded, dict):
        raise InputError(f"{path}: expected `key: value` lines, got {type(loaded).__name__}")
    return loaded or {}


def _over(below: dict[str, Any], above: dict[str, Any]) -> dict[str, Any]:
    """Settings on top of others, group by group."""
    merged = {**below, **above}
    for key in below.keys() & above.keys():
        if isinstance(below[key], dict) and isinstance(above[key], dict):
            merged[key] = _over(below[key], above[key])
    return merged


def _apply(data: dict[str, Any], override: str) -> None:
    key, separator, text = override.partition("=")
    if not separator or not key:
        raise InputError(f"--set {override}: expected key=value, e.g. --set search.population=64")
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise InputError(f"--set {override}: the value is not valid YAML: {error}") from error
    *parents, last = key.split(".")
    for parent in parents:
        inner = data.get(parent)
        if inner is None:
            inner = data[parent] = {}
        if not isinstance(inner, dict):
            raise InputError(f"--set {override}: {parent} is a value, not a group of settings")
        data = inner
    data[last] = value


def explain(source: str, error: ValidationError, model: type[Settings] | None = None) -> str:
    """Says what is wrong in a file of the `model` (None: a configuration), an error a line."""
    lines = []
    for problem in error.errors():
        where = ".".join(str(part) for part in problem["loc"])
        if problem["type"] == "extra_forbidden":
            names = _names(model or Config, problem["loc"][:-1])
            close = difflib.get_close_matches(str(problem["loc"][-1]), names, n=1)
            hint = f"did you mean {close[0]!r}?" if close else f"known here: {', '.join(names)}"
            lines.append(f"{source}: unknown key {where!r}; {hint}")
        else:
            message = problem["msg"].removeprefix("Value error, ")
            given = "" if isinstance(problem["input"], dict | Settings) else f" (got {problem['input']!r})"
            lines.append(f"{source}: {where or 'configuration'}: {message}{given}")
    return "\n".join(lines)


def _names(model: Any, location: tuple[int | str, ...]) -> list[str]:
    for part in location:
        field = model.model_fields.get(part)
        if field is None:
            return []
        candidates = [field.annotation, *getattr(field.annotation, "__args__", ())]
        model = next((c for c in candidates if isinstance(c, type) and issubclass(c, BaseModel)), None)
        if model is None:
            return []
    return list(model.model_fields)
