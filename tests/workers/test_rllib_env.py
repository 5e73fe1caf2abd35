"""RLlib environments: a game pays what it pays when it is played without; who navigates pays the time that SUMO says."""

from __future__ import annotations

import xml.etree.ElementTree as ET
from collections import Counter, defaultdict
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import ray
import torch
from driving_scenes import made
from ray.rllib.algorithms.ppo import PPOConfig
from scipy.sparse.csgraph import dijkstra
from throng.policies.driving.world_model import WorldModel, WorldModelSettings
from throng.policies.marl.algorithms import ALGORITHMS
from throng.policies.marl.crossing import Crossing
from throng.policies.marl.driving import DrivingTerms
from throng.policies.marl.game import Game, play
from throng.policies.marl.mappo import MappoSettings
from throng.scenarios.errors import InputError
from throng.scenarios.scenario import Scenario
from throng.workers.games import GameSpec
from throng.workers.junction import PERIOD
from throng.workers.libsumo_binding import RolloutError
from throng.workers.rllib_env import GameEnv
from throng.workers.rllib_navigation import EACH, OWN, NavigationEnv
from throng.workers.rllib_ppo import actors_of, built, games_of, known_by, ppo, remind
from throng.workers.sumo import travel_times


def recorded() -> GameSpec:
    """Two of a made-up scene, whose world model knows nothing."""
    torch.manual_seed(0)
    model = WorldModel(WorldModelSettings(hidden=24, heads=2, modes=3, future=30)).eval()
    return GameSpec(model, made(), (3, 0), DrivingTerms(), 4, 32, "mappo", MappoSettings(), 0)


@pytest.mark.parametrize("kind", ["crossing", "recorded"])
def test_an_environment_pays_what_its_game_pays(kind: str) -> None:
    game: Game = Crossing(DrivingTerms()) if kind == "crossing" else recorded().game()
    env = GameEnv({"game": game if kind == "crossing" else recorded()})
    names = ["0", "1", "2", "3"] if kind == "crossing" else [made().ids[agent] for agent in (3, 0)]
    assert env.possible_agents == names
    actions = torch.randn(game.horizon, 1, game.agents, 2, generator=torch.Generator().manual_seed(1))
    turn = iter(actions)
    with torch.no_grad():
        played = play(
            game, lambda *_: (next(turn), torch.zeros(1, game.agents)), lambda draw: draw.clamp(-1.0, 1.0), 1,
            torch.Generator().manual_seed(7),
        )  # fmt: skip
    seen, _ = env.reset(seed=7)
    for moment in range(game.horizon):
        for agent, name in enumerate(names):
            assert env.observation_spaces[name].contains(seen[name])
            assert torch.equal(torch.from_numpy(seen[name]), played.observation[moment, 0, agent])
        told = {name: actions[moment, 0, agent].numpy() for agent, name in enumerate(names)}
        seen, rewards, terminated, truncated, infos = env.step(told)
        assert list(rewards.values()) == played.reward[moment, 0].tolist()
        assert [infos[name]["cost"] for name in names] == played.cost[moment, 0].tolist()
        last = moment == game.horizon - 1
        assert truncated == dict.fromkeys([*names, "__all__"], last)
        assert not any(terminated.values())
    with pytest.raises(InputError, match=f"agent '{names[1]}' has no action"):
        env.step({names[0]: np.zeros(2)})


def test_games_follow_from_the_seed_and_end_for_good_where_they_are_to() -> None:
    env = GameEnv({"game": Crossing(DrivingTerms()), "final": True})
    begun = [env.reset(seed=seed)[0]["0"] for seed in (3, None, 3, 4)]
    assert (begun[0] == begun[2]).all()
    assert (begun[0] != begun[1]).any() and (begun[0] != begun[3]).any()
    for _ in range(Crossing.horizon):
        *_, terminated, truncated, _ = env.step(dict.fromkeys(env.possible_agents, np.zeros(2)))
    assert all(terminated.values()) and not any(truncated.values())


@pytest.mark.usefixtures("a_ray")
def test_rllib_learns_as_many_games_as_it_is_told_to_and_its_actors_are_ours() -> None:
    """Where weights were mixed up between agents or layers, densities would differ from those that RLlib sampled with."""
    game = Crossing(DrivingTerms())
    names = ["a", "b/1", "c.", "d"]  # not all of these could be folders
    settings = MappoSettings(hidden=16, actor_rate=1e-2)
    algorithm = built(ppo(ray.put(game), names, game.horizon, settings, 6, 2, 0))
    result = algorithm.train()
    assert result["env_runners"]["throng"]["games"] == 6
    assert result["env_runners"]["num_env_steps_sampled"] == 6 * game.horizon
    returns, costs = games_of(result, names)
    assert returns.shape == (4,) and (returns < 0).all() and ((costs >= 0) & (costs <= 1)).all()
    known = known_by(algorithm)
    ours = ALGORITHMS["mappo"].made(game, MappoSettings(hidden=16), 0)
    ours.actor.load_state_dict(actors_of(known, names))
    seen = game.see(game.begin(5, torch.Generator().manual_seed(0)))
    draw = torch.randn(5, 4, 2)
    with torch.no_grad():
        raw = ours.actor(seen.observation.transpose(0, 1)).transpose(0, 1)
        density = ours.head.log_prob(raw, draw)
        for agent, name in enumerate(names):
            module = algorithm.get_module(f"{name.replace('/', '%2F')}-driver")
            told = module.forward_exploration({"obs": seen.observation[:, agent]})["action_dist_inputs"]
            own = module.get_exploration_action_dist_cls().from_logits(told)
            assert torch.allclose(own.logp(draw[:, agent]), density[:, agent], atol=1e-5)
            assert torch.allclose(own.entropy(), ours.head.entropy(raw)[:, agent], atol=1e-5)
    assert (actors_of(known, names)["first.weight"][0] != actors_of(known, names)["first.weight"][1]).any()
    other = built(ppo(game, names, game.horizon, MappoSettings(hidden=16), 6, 0, 5))
    remind(other, known)
    again = known_by(other)
    assert again.keys() == known.keys()
    assert all(torch.equal(one, again[name]) for name, one in known.items())
    algorithm.stop()
    other.stop()


Step = tuple[dict[str, Any], dict[str, float], set[str], dict[str, dict[str, Any]], dict[str, int]]


def navigated(env: NavigationEnv, seed: int, choose: Callable[[], int]) -> list[Step]:
    """A whole simulation: what was seen, paid, who ended, infos, and what was chosen thereupon."""
    (seen, infos), rewards, ended = env.reset(seed=seed), dict[str, float](), set[str]()
    steps: list[Step] = []
    while True:
        actions = {name: choose() for name in seen if name not in ended}
        steps.append((seen, rewards, ended, infos, actions))
        if "__all__" in ended:
            return steps
        seen, rewards, terminated, truncated, infos = env.step(actions)
        ended = {name for how in (terminated, truncated) for name in how if how[name]}


def test_who_navigates_pays_the_time_that_sumo_says_and_drives_what_was_chosen(
    town: Scenario, make_few: Callable[..., Scenario], tmp_path: Path
) -> None:
    outputs = {"--fcd-output": tmp_path / "fcd.xml", "--vehroute-output": tmp_path / "driven.xml"}
    few = make_few(town, 60, 30)
    options = tuple(str(word) for pair in outputs.items() for word in pair)
    env = NavigationEnv({"scenario": replace(few, options=(*few.options, *options), observe_trips=True)})
    random = np.random.default_rng(0)
    steps = navigated(env, 0, lambda: int(random.choice([0, 0, 0, 1, 2])))
    assert steps[-1][2] >= {"__all__"}
    arrival = few.demand.depart + travel_times(env._rollout.files.trip_data, few)
    network, ids, names = few.network, few.demand.ids, few.network.road_ids
    driven = {
        vehicle.get("id", ""): vehicle.findall(".//route")[-1].get("edges", "").split()
        for vehicle in ET.parse(tmp_path / "driven.xml").getroot().iter("vehicle")
    }
    on: dict[tuple[str, int], str] = {}  # where a vehicle was in a second
    for second, now in enumerate(ET.parse(tmp_path / "fcd.xml").getroot(), start=1):
        on |= {(one.get("id", ""), second): one.get("lane", "").rpartition("_")[0] for one in now}
    to_go = dijkstra(network.graph(network.length))  # metres from the end of one road to that of another

    paid: defaultdict[str, float] = defaultdict(float)
    first: dict[str, int] = {}
    late: set[str] = set()  # whose last choice was not driven
    visits: Counter[tuple[str, str]] = Counter()
    detours = 0
    for seen, rewards, _, infos, actions in steps:
        for name, reward in rewards.items():
            paid[name] += reward
            assert infos[name]["kept"] or name not in late, "decided one way, driven another"
        late -= rewards.keys()
        for name, action in actions.items():
            second, road = int(infos[name]["second"]), infos[name]["road"]
            first.setdefault(name, second)
            assert on[name, second] == road and on.get((name, second - PERIOD)) != road
            place = [at for at, one in enumerate(driven[name]) if one == road][visits[name, road]]
            visits[name, road] += 1
            goal, ways = few.demand.destination[ids.index(name)], network.successors(network.index[road])
            ways = ways[np.isfinite(to_go[ways, goal])]
            metres = network.length[ways] + to_go[ways, goal]
            taken = metres[[names[way] for way in ways].index(driven[name][place + 1])]
            wanted = np.sort(metres)[action if action < len(ways) else 0]
            if taken != pytest.approx(wanted, rel=1e-3):
                late.add(name)
            detours += wanted > metres.min() + 1
            each = seen[name][OWN:].reshape(-1, EACH)
            assert seen[name][0] == pytest.approx(metres.min() / 1000, rel=1e-3)
            assert each[: len(ways), 1] == pytest.approx((np.sort(metres) - metres.min()) / 1000, abs=1e-3)
            assert not each[len(ways) :].any() and each[: len(ways), 0].all()
            assert env.observation_spaces[name].contains(seen[name])
    assert len(first) > 50 and detours > 20
    finished = {name for *_, ended, _, _ in steps for name in ended} - {"__all__"}
    assert finished == first.keys()
    for name, second in first.items():
        end = arrival[ids.index(name)] + 1  # SUMO's files say when a step began, and seconds are told when it has ended
        assert paid[name] == pytest.approx((second - (60 * few.minutes if np.isnan(end) else end)) / 60, abs=1e-4)
    assert np.isfinite(arrival).sum() > 50
    env.close()


def test_a_process_navigates_in_one_simulation(town: Scenario, make_few: Callable[..., Scenario]) -> None:
    """libsumo would destroy the first without a word."""
    few = make_few(town, 10, 5)
    one, other = NavigationEnv({"scenario": few}), NavigationEnv({"scenario": few})
    seen = one.reset(seed=1)[0]
    with pytest.raises(RolloutError, match="one per process"):
        other.reset(seed=1)
    one.close()
    again = other.reset(seed=1)[0]
    assert seen.keys() == again.keys() and all((seen[name] == again[name]).all() for name in seen)
    other.close()


@pytest.mark.usefixtures("a_ray")
def test_rllibs_ppo_learns_to_navigate_as_it_comes(town: Scenario, make_few: Callable[..., Scenario]) -> None:
    """One policy for all: choices that no way belongs to, and vehicles that come and go, must not stop it."""
    algorithm = built(
        PPOConfig()
        .environment(NavigationEnv, env_config={"scenario": ray.put(make_few(town, 20, 15))})
        .env_runners(num_env_runners=0, num_envs_per_env_runner=1, batch_mode="complete_episodes")
        .multi_agent(policies={"driver"}, policy_mapping_fn=lambda *_, **__: "driver")
        .training(train_batch_size_per_learner=200, minibatch_size=64, num_epochs=2)
        .debugging(seed=0, log_level="ERROR")
    )
    result = algorithm.train()
    algorithm.stop()
    assert np.isfinite(result["learners"]["driver"]["total_loss"])
    assert result["env_runners"]["module_episode_returns_mean"]["driver"] < 0
