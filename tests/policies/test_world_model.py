"""World models: the same wherever a scene lies, encoded bit by bit as all at once, learning what there is to learn."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from driving_scenes import FRAMES, HISTORY, made
from scipy.stats import laplace as scipy_laplace
from scipy.stats import norm
from throng.policies.driving.evaluation import by_extrapolation, by_model, errors_of
from throng.policies.driving.imagination import Imagination, drawn, likeliest
from throng.policies.driving.imitation import HEADING, Extrapolation, Imitation, ahead, laplace, loss_of
from throng.policies.driving.model_file import load_model, load_optimizer, save_model, save_optimizer
from throng.policies.driving.tokens import MAP_NEAR, PIECE, STRIDE, SceneTokens, batch_of, tokens_of
from throng.policies.driving.world_model import Memory, Prediction, WorldModel, WorldModelSettings
from throng.scenarios.driving.recording import Map, Polyline, empty, scene_of
from throng.scenarios.driving.scene import Kind, Light, Line
from throng.scenarios.errors import InputError

SMALL = WorldModelSettings(hidden=24, heads=2, modes=3, future=30)


def model(**options: object) -> WorldModel:
    torch.manual_seed(0)
    found = WorldModel(replace(SMALL, **options)).eval()  # type: ignore[arg-type]
    for last in (found.way[-1], found.spread[-1]):  # as if it had learnt something
        torch.nn.init.normal_(last.weight, std=0.3)
    return found


def observed(of: WorldModel, scenes: list[SceneTokens], frame: int = 30) -> tuple[Prediction, torch.Tensor]:
    batch = batch_of(scenes, [0] * len(scenes), frame + 1)
    known = of.encode_map(batch)
    memory: Memory | None = None
    for moment in range(STRIDE, frame + 1, STRIDE):
        memory = of.observe(batch, known, moment, memory)
    assert memory is not None
    rows = torch.nonzero(memory.there[:, -1])[:, 0]
    return of.predict(batch, known, frame, memory, rows), rows


def test_pieces_of_lines_are_short_and_lie_on_them() -> None:
    scene = made()
    found = tokens_of(scene)
    lanes = [scene.polyline(line).astype(float) for line in scene.of_kind(Line.LANE)]
    length = sum(np.linalg.norm(np.diff(one, axis=0), axis=1).sum() for one in lanes)
    own = found.piece_kind == Line.LANE
    assert own.sum() == sum(int(np.ceil(np.linalg.norm(np.diff(one, axis=0), axis=1).sum() / PIECE)) for one in lanes)
    drawn_length = np.linalg.norm(np.diff(found.shape[own], axis=1), axis=2).sum()
    assert drawn_length == pytest.approx(length, rel=2e-3)
    ends = found.shape[own][:, -1] - found.shape[own][:, 0]
    assert (ends[:, 0] > 0.9 * np.abs(ends[:, 1])).all(), "a piece points ahead in its own frame"
    batch = batch_of([found], [0], 1)
    xy = torch.tensor([[[3.0, 2.0], [-20.0, 10.0]]])
    near = batch.near_pieces(xy)[0].numpy()
    for place, which in zip(xy[0].numpy(), near, strict=True):
        some = which[which < len(found.pieces)]
        apart = np.linalg.norm(found.pieces[:, :2] - place, axis=1)
        assert len(some) == min(MAP_NEAR, len(found.pieces))
        assert apart[some].max() < np.sort(apart)[len(some) - 1] + 2 * 4.0 * np.sqrt(0.5) + 1e-3


def test_predictions_turn_and_move_with_the_scene() -> None:
    of = model()
    turn, shift = 1.1, (300.0, -80.0)
    # So few lanes that all of the map is seen: what is near is looked up by the cells of a grid, which does not turn.
    plain, turned = made(lanes=2), made(lanes=2, turn=turn, shift=shift)
    assert len(tokens_of(plain).pieces) < MAP_NEAR
    one, rows = observed(of, [tokens_of(plain)])
    other, same = observed(of, [tokens_of(turned)])
    assert torch.equal(rows, same)
    rotation = np.array([[np.cos(turn), np.sin(turn)], [-np.sin(turn), np.cos(turn)]])
    there = one.trajectory[..., :2].detach().double().numpy() + plain.origin
    expected = there @ rotation + np.array(shift) - turned.origin
    np.testing.assert_allclose(other.trajectory[..., :2].detach(), expected, atol=0.02)
    np.testing.assert_allclose(other.logits.detach(), one.logits.detach(), atol=1e-3)
    assert one.trajectory.std(1).mean() > 0.1, "modes differ"


def test_scenes_side_by_side_are_as_each_alone_and_who_is_not_there_does_not_matter() -> None:
    of = model()
    scenes = [tokens_of(made(seed)) for seed in range(3)]
    scenes[1] = replace(scenes[1], lights=scenes[1].lights[:0], light_state=scenes[1].light_state[:0])
    together, rows = observed(of, scenes)
    most = max(len(one.agents) for one in scenes)
    for i, scene in enumerate(scenes):
        alone, own = observed(of, [scene])
        mine = (rows >= i * most) & (rows < (i + 1) * most)
        assert torch.equal(rows[mine] - i * most, own)
        torch.testing.assert_close(together.trajectory[mine], alone.trajectory, atol=1e-3, rtol=1e-4)
        torch.testing.assert_close(together.scale[mine], alone.scale, atol=1e-4, rtol=1e-4)
    late = tokens_of(made(0))
    garbage = replace(late, agents=np.where(late.there[..., None], late.agents, 77.0).astype(np.float32))
    first, _ = observed(of, [late])
    second, _ = observed(of, [garbage])
    torch.testing.assert_close(first.trajectory, second.trajectory)


def test_without_a_map_agents_are_predicted_all_the_same() -> None:
    of, scene = model(), made()
    bare = tokens_of(replace(scene, line_kind=np.full_like(scene.line_kind, Line.ROAD_LINE)))
    assert len(bare.pieces) == 0
    alone, rows = observed(of, [bare])
    assert torch.isfinite(alone.trajectory).all()
    together, _ = observed(of, [bare, tokens_of(scene)])
    torch.testing.assert_close(together.trajectory[: len(rows)], alone.trajectory, atol=1e-3, rtol=1e-4)
    with_map = together.trajectory[len(rows) :]
    assert (with_map - alone.trajectory).abs().max() > 1e-3, "the map matters"


def test_neighbours_lights_and_the_past_matter() -> None:
    of = model()
    scene = tokens_of(made())
    plain, rows = observed(of, [scene])
    gone = scene.there.copy()
    gone[1] = False
    blind = np.where(scene.light_state == Light.STOP, Light.GO, scene.light_state)
    short = scene.there.copy()
    short[0, :20] = False
    for changed, name in (
        (replace(scene, there=gone), "a neighbour"), (replace(scene, light_state=blind), "a light"),
        (replace(scene, there=short), "the past"),
    ):  # fmt: skip
        found, same = observed(of, [changed])
        first = found.trajectory[same == 0]
        assert (first - plain.trajectory[rows == 0]).abs().max() > 1e-4, name


def test_a_model_that_changes_nothing_goes_straight_on() -> None:
    of = model()
    for last in (of.way[-1], of.spread[-1]):
        torch.nn.init.zeros_(last.weight)
    scene = tokens_of(made())
    found, rows = observed(of, [scene])
    straight = Extrapolation(False).predict(batch_of([scene], [0], 31), 30, rows, SMALL.future)
    torch.testing.assert_close(found.trajectory, straight.expand_as(found.trajectory), atol=1e-3, rtol=1e-4)


def test_knots_are_speeds_between_which_is_interpolated() -> None:
    basis = model().basis.numpy()
    rng = np.random.default_rng(0)
    knots = rng.normal(size=len(basis))
    fine = np.linspace(0, 3.0, 30_001)
    speed = np.interp(fine, 0.5 * np.arange(len(basis) + 1), np.concatenate([[0.0], knots]))
    way = np.concatenate([[0.0], np.cumsum((speed[1:] + speed[:-1]) / 2 * np.diff(fine))])
    np.testing.assert_allclose(knots @ basis, way[1000::1000], atol=1e-4)


def test_constant_turning_is_an_arc() -> None:
    time = np.arange(FRAMES) * 0.1
    found = empty("arc", "made", time, HISTORY, ["a"], [Kind.VEHICLE])
    yaw = 0.3 * time
    found.xy[0] = 20.0 * np.column_stack([np.sin(yaw), 1 - np.cos(yaw)])
    found.yaw[0], found.velocity[0] = yaw, 6.0 * np.column_stack([np.cos(yaw), np.sin(yaw)])
    found.size[0], found.valid[0] = (4.0, 2.0), True
    found.map = Map([Polyline("lane", Line.LANE, np.array([(0.0, 0.0), (50.0, 0.0)]))])
    scene = tokens_of(scene_of(found))
    assert errors_of([scene], by_extrapolation(True, 30), 30).min_fde[0] < 0.02
    straight = errors_of([scene], by_extrapolation(False, 30), 30)
    angle = 0.3 * 3.0
    expected = np.linalg.norm([20 * np.sin(angle) - 18.0, 20 * (1 - np.cos(angle))])
    assert straight.min_fde[0] == pytest.approx(expected, abs=0.05)
    assert straight.miss_rate == 1.0
    assert straight.brier_min_fde[0] == straight.min_fde[0], "one mode is certain"


def test_errors_are_argoverses() -> None:
    """Three modes 1, 2 and 4 m beside the truth in the end; the nearest has a probability of a half."""
    scene = tokens_of(made())
    scene = replace(scene, focal=np.arange(7) == 1)

    def predictor(batch, frame, rows):  # type: ignore[no-untyped-def]
        way, _ = ahead(batch, frame, 30)
        beside = torch.tensor([2.0, 1.0, 4.0])[:, None] * torch.linspace(0, 1, 30)
        modes = way[rows][:, None].expand(-1, 3, -1, -1).clone()
        modes[..., 1] += beside
        return modes, torch.tensor([[0.3, 0.5, 0.2]])

    found = errors_of([scene], predictor, 30)
    assert len(found) == 1
    assert found.min_fde[0] == pytest.approx(1.0, abs=1e-4)
    assert found.min_ade[0] == pytest.approx(0.5, abs=1e-4)
    assert found.brier_min_fde[0] == pytest.approx(1.25, abs=1e-4)
    two = errors_of([scene], predictor, 30, modes=1)
    assert (two.min_fde[0], two.miss_rate) == (pytest.approx(1.0, abs=1e-4), 0.0), "the likeliest is the nearest"
    with pytest.raises(ValueError, match="no scene has anybody"):
        errors_of([replace(scene, there=scene.there[:, :40], agents=scene.agents[:, :40])], predictor, 30)


def test_losses_are_scipys() -> None:
    scale, error = torch.tensor([0.5, 2.0]), torch.tensor([0.3, -4.0])
    np.testing.assert_allclose(laplace(scale, error), -scipy_laplace.logpdf(error, scale=scale), rtol=1e-5)
    rng = np.random.default_rng(0)
    n, modes, future = 4, 3, 6
    tensors = {
        "trajectory": torch.tensor(rng.normal(size=(n, modes, future, 3)), dtype=torch.float32),
        "scale": torch.tensor(rng.uniform(0.5, 2, (n, modes, future, 2)), dtype=torch.float32),
        "logits": torch.tensor(rng.normal(size=(n, modes)), dtype=torch.float32),
    }
    found = Prediction(**tensors, feature=torch.zeros(n, modes, 1))
    way = torch.tensor(rng.normal(size=(n, future, 3)), dtype=torch.float32)
    seen = torch.tensor(rng.random((n, future)) < 0.7)
    seen[:, 0] = True
    loss = loss_of(found, way, seen)
    regression = classification = 0.0
    for i in range(n):
        own = seen[i].numpy()
        apart = [
            np.linalg.norm((tensors["trajectory"][i, k] - way[i])[:, :2], axis=1)[own].mean() for k in range(modes)
        ]
        k = int(np.argmin(apart))
        off = (tensors["trajectory"][i, k] - way[i]).numpy()
        turned = (off[:, 2] + np.pi) % (2 * np.pi) - np.pi
        b = tensors["scale"][i, k].numpy()
        nll = -scipy_laplace.logpdf(off[:, :2], scale=b[:, :1]).sum(1) - HEADING * scipy_laplace.logpdf(
            turned, scale=b[:, 1]
        )
        regression += nll[own].mean()
        last = np.flatnonzero(own)[-1]
        share = torch.softmax(tensors["logits"][i], -1).numpy()
        end = (tensors["trajectory"][i, :, last] - way[i, last]).numpy()[:, :2]
        density = [
            share[m] * np.prod(scipy_laplace.pdf(end[m], scale=tensors["scale"][i, m, last, 0].item()))
            for m in range(modes)
        ]
        classification -= np.log(sum(density))
    assert float(loss.regression) == pytest.approx(regression, rel=1e-4)
    assert float(loss.classification) == pytest.approx(classification, rel=1e-4)
    assert float(loss.agents) == n


def test_every_weight_is_learnt() -> None:
    """Data-parallel training waits for the gradients of all."""
    learner = Imitation(SMALL)
    batch = batch_of([tokens_of(made())], [0], 61)
    learner(batch, (20, 30), 100, torch.Generator().manual_seed(0)).total.backward()
    without = [name for name, one in learner.named_parameters() if one.grad is None]
    assert not without


def test_what_all_do_alike_is_learnt() -> None:
    """Everybody brakes at 1 m/s² from the tenth frame on: going straight on overshoots, a trained model does not."""

    def braking(seed: int) -> SceneTokens:
        rng = np.random.default_rng(seed)
        time = np.arange(FRAMES) * 0.1
        found = empty(f"brake{seed}", "made", time, 11, ["a", "b"], [Kind.VEHICLE] * 2)
        speed = np.where(time < 1.0, 8.0, np.clip(8.0 - (time - 1.0), 0, None))
        for i in range(2):
            yaw = rng.uniform(-3, 3)
            way = np.concatenate([[0.0], np.cumsum(speed[:-1] * 0.1)])
            along = np.array([np.cos(yaw), np.sin(yaw)])
            found.xy[i] = rng.uniform(-20, 20, 2) + way[:, None] * along
            found.yaw[i], found.velocity[i] = yaw, speed[:, None] * along
            found.size[i], found.valid[i] = (4.0, 2.0), True
        found.map = Map([Polyline("lane", Line.LANE, np.array([(-50.0, 0.0), (50.0, 0.0)]))])
        return tokens_of(scene_of(found))

    torch.manual_seed(0)
    learner = Imitation(replace(SMALL, modes=2))
    optimizer = torch.optim.Adam(learner.parameters(), 1e-2)
    generator = torch.Generator().manual_seed(0)
    scenes = [braking(i) for i in range(8)]
    for _ in range(25):
        batch = batch_of(scenes, [0] * len(scenes), 41)
        loss = learner(batch, (10,), 100, generator)
        optimizer.zero_grad()
        (loss.total / loss.agents).backward()
        optimizer.step()
    tests = [braking(10_000 + i) for i in range(4)]
    straight = errors_of(tests, by_extrapolation(False, 30), 30)
    found = errors_of(tests, by_model(learner.model.eval()), 30)
    assert straight.min_fde.mean() == pytest.approx(4.5, abs=0.3)
    assert found.min_fde.mean() < 0.5 * straight.min_fde.mean()


def test_futures_are_imagined_as_predicted_and_together_as_one_by_one() -> None:
    of = model()
    scene = tokens_of(made())
    with torch.no_grad():
        many = Imagination(of, scene, 3)
        state = many.begin()
        found, rows = many.predict(state)
        plain, own = observed(of, [scene])
        torch.testing.assert_close(found.trajectory[: len(own)], plain.trajectory, atol=1e-3, rtol=1e-4)
        modes = torch.arange(len(rows)) % 3  # futures differ
        later = many.advance(state, many.modes(state, found, rows, modes))
        assert later.frame == state.frame + STRIDE
        ends = later.batch.agents[:, :, -1, :2].flatten(0, 1)[rows]
        chosen = found.trajectory[torch.arange(len(rows)), modes, STRIDE - 1, :2]
        torch.testing.assert_close(ends, chosen)
        again, _ = many.predict(later)
        # The second future by itself, everything encoded anew.
        agents, there = scene.agents.copy(), scene.there.copy()
        count = len(agents)
        new = later.batch.agents[1, :count, 1:].numpy()
        agents[:, HISTORY : HISTORY + STRIDE] = new
        there[:, HISTORY : HISTORY + STRIDE] = there[:, HISTORY - 1 : HISTORY]
        whole = replace(scene, agents=agents, there=there)
        expected, same = observed(of, [whole], HISTORY - 1 + STRIDE)
        mine = (rows >= count) & (rows < 2 * count)
        torch.testing.assert_close(again.trajectory[mine], expected.trajectory, atol=2e-3, rtol=1e-4)
        assert torch.equal(rows[mine] - count, same)


def test_modes_are_drawn_as_probable_as_they_are() -> None:
    logits = torch.log(torch.tensor([[0.2, 0.5, 0.3]])).expand(4000, 3)
    nothing = torch.zeros(4000, 3, 1, 3)
    found = Prediction(nothing, nothing[..., :2], logits, nothing[..., 0, :])
    assert likeliest(found).unique().tolist() == [1]
    counts = torch.bincount(drawn(found, torch.Generator().manual_seed(0)), minlength=3).numpy()
    for count, share in zip(counts, (0.2, 0.5, 0.3), strict=True):
        assert abs(count - 4000 * share) < norm.ppf(1 - 1e-6) * np.sqrt(4000 * share * (1 - share))


def test_models_come_back_from_disk_and_what_is_none_is_refused(tmp_path: Path) -> None:
    of = model()
    save_model(of, tmp_path / "m", scenes=3)
    again = load_model(tmp_path / "m")
    assert again.settings == of.settings
    for one, other in zip(of.state_dict().values(), again.state_dict().values(), strict=True):
        assert torch.equal(one, other)
    with pytest.raises(InputError, match="worldmodel train"):
        load_model(tmp_path)
    text = (tmp_path / "m" / "model.json").read_text()
    (tmp_path / "m" / "model.json").write_text(text.replace('"hidden": 24', '"hidden": 48'))
    with pytest.raises(InputError, match="not a world model"):
        load_model(tmp_path / "m")
    (tmp_path / "m" / "model.json").write_text(text)
    (tmp_path / "m" / "model.safetensors").write_bytes(b"nothing of the kind")
    with pytest.raises(InputError, match="not a world model"):
        load_model(tmp_path / "m")


def test_an_optimizer_goes_on_where_it_stopped(tmp_path: Path) -> None:
    def stepped(parameter: torch.Tensor, optimizer: torch.optim.Optimizer, times: int) -> None:
        for i in range(times):
            optimizer.zero_grad()
            (parameter.sin().sum() * (i + 1)).backward()
            optimizer.step()

    one = torch.nn.Parameter(torch.linspace(-1, 1, 5))
    first = torch.optim.AdamW([one], lr=0.1)
    stepped(one, first, 3)
    save_optimizer(first, tmp_path / "o")
    other = torch.nn.Parameter(one.detach().clone())
    second = torch.optim.AdamW([other], lr=0.1)
    load_optimizer(second, tmp_path / "o")
    stepped(one, first, 2)
    stepped(other, second, 2)
    assert torch.equal(one, other)


def test_scenes_that_a_model_cannot_use_are_refused() -> None:
    scene = made()
    with pytest.raises(InputError, match=r"steps of 0\.2 s"):
        tokens_of(replace(scene, step=0.2))
    with pytest.raises(InputError, match="frame 3"):
        Imagination(model(), tokens_of(scene), 1, 3)
    few = tokens_of(replace(scene, focal=np.arange(7) == 4), 3)
    assert len(few.agents) == 3
    assert few.focal.sum() == 1
