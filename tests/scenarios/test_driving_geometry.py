"""Boxes and movements against shapely, brute force, closed forms and numerical gradients."""

from __future__ import annotations

import math

import numpy as np
import pytest
import shapely
import torch
from throng.scenarios.driving.geometry import LATEST, DirectedLines, box_distance, corners, time_to_collision
from throng.scenarios.driving.kinematics import (
    FRONT,
    REAR,
    advance,
    bicycle,
    bicycle_action,
    curvature,
    delta,
)
from throng.scenarios.driving.line_index import line_index

STEP = 0.1
Boxes = tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]


def _random_boxes(count: int, spread: float, seed: int = 0) -> Boxes:
    rng = np.random.default_rng(seed)
    one, other = (
        torch.tensor(np.column_stack([rng.normal(0, spread, (count, 2)), rng.uniform(-7, 7, count)])) for _ in range(2)
    )
    size, other_size = (torch.tensor(rng.uniform(0.3, 9.0, (count, 2))) for _ in range(2))
    return one, other, size, other_size


def _polygons(boxes: torch.Tensor, size: torch.Tensor) -> np.ndarray:
    return shapely.polygons(corners(boxes, size).numpy())


def _parting(one: np.ndarray, other: np.ndarray) -> float:
    """The least way that parts two overlapping convex polygons, found by trying all edges of their Minkowski difference."""
    hull = shapely.convex_hull(shapely.multipoints((one[:, None] - other[None]).reshape(-1, 2)))
    return float(shapely.distance(hull.exterior, shapely.Point(0.0, 0.0)))


def test_boxes_apart_are_as_far_as_shapely_says() -> None:
    boxes = _random_boxes(20_000, 12.0)
    ours = box_distance(*boxes).numpy()
    theirs = shapely.distance(_polygons(boxes[0], boxes[2]), _polygons(boxes[1], boxes[3]))
    apart = theirs > 0
    assert apart.sum() > 10_000
    np.testing.assert_allclose(ours[apart], theirs[apart], atol=1e-9)
    assert (ours[~apart] <= 1e-12).all()


def test_overlapping_boxes_are_parted_by_the_least_way() -> None:
    boxes = _random_boxes(3_000, 2.0)
    ours = box_distance(*boxes).numpy()
    inside = np.flatnonzero(ours < 0)
    assert len(inside) > 1_500
    one, other = corners(boxes[0], boxes[2]).numpy(), corners(boxes[1], boxes[3]).numpy()
    np.testing.assert_allclose(-ours[inside], [_parting(one[i], other[i]) for i in inside], atol=1e-9)


@pytest.mark.parametrize("turn", [0.0, math.pi / 2, math.pi, -math.pi / 2])
def test_boxes_in_parallel(turn: float) -> None:
    """Edges of the two then lie on one line, and neither alone is the whole edge of their difference."""
    grid = torch.linspace(-8, 8, 41, dtype=torch.float64)
    x, y = torch.meshgrid(grid, grid, indexing="ij")
    other = torch.stack([x.reshape(-1), y.reshape(-1), torch.full((x.numel(),), turn, dtype=torch.float64)], dim=-1)
    one = torch.zeros(1, 3, dtype=torch.float64)
    size, other_size = torch.tensor([[4.0, 2.0]], dtype=torch.float64), torch.tensor([[5.0, 1.0]], dtype=torch.float64)
    ours = box_distance(one, other, size, other_size).numpy()
    length, width = (5.0, 1.0) if turn in (0.0, math.pi) else (1.0, 5.0)
    dx, dy = np.abs(x.numpy().ravel()) - (4.0 + length) / 2, np.abs(y.numpy().ravel()) - (2.0 + width) / 2
    outside = np.hypot(np.maximum(dx, 0), np.maximum(dy, 0))
    np.testing.assert_allclose(ours, np.where(outside > 0, outside, np.maximum(dx, dy)), atol=1e-9)


def test_distance_is_the_same_from_both_sides_and_in_float32() -> None:
    one, other, size, other_size = _random_boxes(5_000, 6.0, seed=1)
    there, back = box_distance(one, other, size, other_size), box_distance(other, one, other_size, size)
    torch.testing.assert_close(there, back, atol=1e-9, rtol=0)
    single = box_distance(one.float(), other.float(), size.float(), other_size.float())
    torch.testing.assert_close(single.double(), there, atol=1e-4, rtol=0)


def test_gradients_of_distances() -> None:
    """Against finite differences, for boxes apart and overlapping; finite where boxes touch or are the same."""
    one, other, size, other_size = _random_boxes(40, 3.0, seed=2)
    inputs = [tensor.requires_grad_() for tensor in (one, other, size, other_size)]
    assert torch.autograd.gradcheck(box_distance, inputs, eps=1e-7, atol=1e-5)
    same = torch.zeros(2, 3, dtype=torch.float64, requires_grad=True)
    beside = torch.tensor([[0.0, 0.0, 0.0], [4.0, 0.0, 0.0]], dtype=torch.float64)
    sizes = torch.full((2, 2), 4.0, dtype=torch.float64)
    box_distance(same, beside, sizes, sizes).sum().backward()
    assert same.grad is not None
    assert torch.isfinite(same.grad).all()


def test_the_bicycle_has_its_printed_jacobian() -> None:
    """MRIC, Eq. 13."""
    rng = np.random.default_rng(0)
    for _ in range(20):
        x, y, yaw, speed, acceleration, steering = rng.normal(0, 1, 6) * [20, 20, 2, 8, 2, 0.4]
        length = 4.5
        state = torch.tensor([x, y, yaw, speed], dtype=torch.float64)
        action = torch.tensor([acceleration, steering], dtype=torch.float64)
        long = torch.tensor(REAR * length, dtype=torch.float64)
        found = torch.autograd.functional.jacobian(lambda s, a=action, n=long: bicycle(s, a, n, STEP), state)
        slip = math.atan(REAR / (REAR + FRONT) * math.tan(steering))
        expected = np.eye(4)
        expected[0, 2:] = -speed * math.sin(yaw + slip) * STEP, math.cos(yaw + slip) * STEP
        expected[1, 2:] = speed * math.cos(yaw + slip) * STEP, math.sin(yaw + slip) * STEP
        expected[2, 3] = math.sin(slip) * STEP / (REAR * length)
        np.testing.assert_allclose(found.numpy(), expected, atol=1e-9)


def test_a_bicycle_has_the_gradients_of_finite_differences() -> None:
    rng = np.random.default_rng(0)
    state = torch.tensor(rng.normal(0, 1, (3, 5, 4)) * [20, 20, 2, 8], requires_grad=True)
    action = torch.tensor(rng.normal(0, 1, (3, 5, 2)) * [2.0, 0.4], requires_grad=True)
    length = torch.tensor(rng.uniform(2, 10, (3, 5)))
    assert torch.autograd.gradcheck(lambda s, a: bicycle(s, a, REAR * length, STEP), (state, action))


def test_a_bicycle_drives_in_circles_of_its_radius() -> None:
    """Of its centre: l_r / sin(slip)."""
    length, steering, speed = 4.0, 0.3, 5.0
    slip = math.atan(REAR / (REAR + FRONT) * math.tan(steering))
    radius = REAR * length / math.sin(slip)
    state = torch.tensor([0.0, 0.0, -slip, speed], dtype=torch.float64)
    step, places = 1e-2, []
    for _ in range(round(2 * math.pi * radius / speed / step)):
        places.append(state[:2].numpy())
        state = bicycle(state, torch.tensor([0.0, steering], dtype=torch.float64), torch.tensor(REAR * length), step)
    np.testing.assert_allclose(np.linalg.norm(np.array(places) - [0.0, radius], axis=1), radius, rtol=0.02)


def test_actions_of_a_log_lead_through_it() -> None:
    rng = np.random.default_rng(0)
    state = torch.tensor(rng.normal(0, 1, (500, 4)) * [20, 20, 2, 4] + [0, 0, 0, 8])
    state[:, 3] = state[:, 3].abs() + 0.5
    action = torch.tensor(rng.normal(0, 1, (500, 2)) * [2.0, 0.2])
    length = torch.tensor(rng.uniform(2, 10, 500))
    after = bicycle(state, action, REAR * length, STEP)
    torch.testing.assert_close(bicycle_action(state, after, REAR * length, STEP), action, atol=1e-6, rtol=0)
    still = torch.zeros(1, 4, dtype=torch.float64)
    assert bicycle_action(still, still, torch.tensor([4.0]), STEP).tolist() == [[0.0, 0.0]]


def test_constant_speed_and_constant_acceleration_go_exactly_as_far() -> None:
    """Six seconds at v travel 6 v; at constant a, v ends at v + 6 a after 6 v + 18 a (TrafficGamer, spec 9.10)."""
    state = torch.tensor([1.0, 2.0, 0.5, 7.0], dtype=torch.float64)
    for acceleration in (0.0, 0.8):
        moved = state
        for _ in range(60):
            moved = curvature(moved, torch.tensor([acceleration, 0.0], dtype=torch.float64), STEP)
        way = 7.0 * 6 + acceleration * 18
        expected = [1.0 + way * math.cos(0.5), 2.0 + way * math.sin(0.5), 0.5, 7.0 + 6 * acceleration]
        np.testing.assert_allclose(moved.numpy(), expected, atol=1e-9)


def test_a_curve_has_its_curvature_and_who_brakes_stops() -> None:
    state = torch.tensor([0.0, 0.0, 0.0, 6.0], dtype=torch.float64)
    for _ in range(30):
        state = curvature(state, torch.tensor([0.5, 0.03], dtype=torch.float64), STEP)
    assert state[2] == pytest.approx(0.03 * (6.0 * 3 + 0.5 * 9 / 2))
    for _ in range(40):
        state = curvature(state, torch.tensor([-5.0, 0.0], dtype=torch.float64), STEP)
    assert state[3] == 0.0
    stopped = curvature(torch.tensor([0.0, 0.0, 0.0, 1.0]), torch.tensor([-20.0, 0.0]), STEP)
    assert stopped[0] == pytest.approx(1.0 / 40.0), "v² / 2a, though the step is longer"


def test_pedestrians_step_and_all_others_drive() -> None:
    state = torch.tensor([[0.0, 0.0, 0.0, 1.0]] * 3, requires_grad=True)
    action = torch.tensor([[0.3, -0.4, 0.1], [1.0, 0.2, 0.0], [1.0, 0.2, 0.0]], requires_grad=True)
    walks = torch.tensor([True, False, False])
    length = torch.tensor([0.6, 4.5, 1.8])
    after = advance(state, action, walks, REAR * length, STEP)
    torch.testing.assert_close(after[0], torch.tensor([0.3, -0.4, 0.1, 5.0]))
    for i in (1, 2):
        torch.testing.assert_close(after[i], bicycle(state[i], action[i, :2], REAR * length[i], STEP))
    after.sum().backward()
    assert torch.isfinite(state.grad).all()  # type: ignore[arg-type]
    assert action.grad[1, 2] == 0.0  # type: ignore[index]
    standing = torch.zeros(3, requires_grad=True)
    delta(torch.zeros(4), standing, STEP).sum().backward()
    assert torch.isfinite(standing.grad).all()  # type: ignore[arg-type]


def _places() -> tuple[list[np.ndarray], shapely.Geometry]:
    """Edges of a crooked road with an island, the road on their left, and the road as a polygon."""
    outer = np.array([(0, 0), (30, 0), (40, 12), (55, 12), (55, 30), (38, 30), (36, 18), (0, 20)], float)
    island = np.array([(15, 6), (15, 12), (24, 12), (20, 9), (24, 6)], float)  # clockwise, and not convex
    rings = [np.vstack([ring, ring[:1]]) for ring in (outer, island)]
    return rings, shapely.Polygon(outer, [island])


def test_distances_from_road_edges_are_exact() -> None:
    """Anywhere on the grid: signs at corners, too, where the nearest point is an end of two segments."""
    rings, road = _places()
    finer = [shapely.segmentize(shapely.LineString(ring), 0.7) for ring in rings]  # as recordings have them
    lines = [np.asarray(line.coords) for line in finer]
    edges = DirectedLines([line_index(lines, np.array([-20.0, -15.0]), np.array([75.0, 45.0]))], torch.float64)
    rng = np.random.default_rng(0)
    places = rng.uniform([-20, -15], [75, 45], (20_000, 2))
    ours = edges.distance(torch.tensor(places)[None], torch.zeros(1, dtype=torch.long))[0].numpy()
    points = shapely.points(places)
    theirs = shapely.distance(road.boundary, points)
    np.testing.assert_allclose(np.abs(ours), theirs, atol=0.011)
    clear = theirs > 0.02
    np.testing.assert_array_equal(ours[clear] < 0, shapely.contains(road, points)[clear])


def test_road_edges_of_several_scenes_and_of_boxes() -> None:
    """Each batch row asks of its own scene; a box is as far off as its worst corner; gradients are numerical ones."""
    rings, _ = _places()
    aside = np.array([100.0, 0.0])
    shifted = [ring + aside for ring in rings[:1]]
    low, high = np.array([-20.0, -15.0]), np.array([75.0, 45.0])
    indices = [line_index(rings, low, high), line_index(shifted, low + aside, high + aside)]
    edges = DirectedLines(indices, torch.float64)
    rng = np.random.default_rng(1)
    boxes = torch.tensor(
        np.concatenate([rng.uniform([0, 0], [55, 30], (2, 50, 2)), rng.uniform(-3, 3, (2, 50, 1))], -1)
    )
    boxes[1, :, 0] += 100.0
    size = torch.tensor(rng.uniform(0.5, 5.0, (2, 50, 2)))
    scene = torch.tensor([0, 1])
    found = edges.box_distance(boxes, size, scene)
    for row in range(2):
        alone = DirectedLines([indices[row]], torch.float64)
        each = [
            alone.distance(corners(boxes[row, i], size[row, i])[None], torch.zeros(1, dtype=torch.long)).max()
            for i in range(50)
        ]
        torch.testing.assert_close(found[row], torch.stack(each))
    inputs = (boxes[:, :8].clone().requires_grad_(), size[:, :8].clone().requires_grad_())
    assert torch.autograd.gradcheck(lambda b, s: edges.box_distance(b, s, scene), inputs, eps=1e-7, atol=1e-5)


def test_two_collide_when_they_say_they_will() -> None:
    """Both keep their speeds: at that time, and not before, their boxes touch."""
    agents = torch.tensor([[[0.0, 0.0, 0.3, 9.0], [20.0, 6.3, 0.3, 4.0], [0.0, 30.0, 0.0, 9.0]]], dtype=torch.float64)
    size = torch.tensor([[[4.5, 1.9], [4.0, 1.8], [4.0, 1.8]]], dtype=torch.float64)
    present = torch.ones(1, 3, dtype=torch.bool)
    (found,) = time_to_collision(agents, present, size)
    assert found[1:].tolist() == [LATEST, LATEST], "who is ahead of nobody meets nobody"

    def gap(time: float) -> float:
        way = time * agents[0, :, 3:4] * torch.stack([torch.cos(agents[0, :, 2]), torch.sin(agents[0, :, 2])], -1)
        boxes = torch.cat([agents[0, :, :2] + way, agents[0, :, 2:3]], -1)
        return float(box_distance(boxes[0], boxes[1], size[0, 0], size[0, 1]))

    assert gap(float(found[0])) == pytest.approx(0.0, abs=1e-6)
    assert gap(float(found[0]) - 0.1) == pytest.approx(0.5, abs=1e-6)
    present[0, 1] = False
    assert time_to_collision(agents, present, size)[0, 0] == LATEST
