"""Features against values worked out by hand."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
from numpy.typing import NDArray
from throng.policies.features import (
    FEATURES,
    MEANING,
    STATIC,
    FeatureScaler,
    fit_scaler,
    queue_feature,
    static_features,
)
from throng.scenarios.network import TURNS, RoadNetwork

# Rows: connections 0-1 (left), 0-2 (right), 1-3 (slight left), 2-3 (a masked U-turn).
# Columns: travel time, arterial, speed, signal, left, right, minus the L1 distance to the centre (40, 50).
BY_HAND = np.array(
    [
        [20, 1, 10, 1, 1, 0, -110],
        [15, 0, 20, 0, 0, 1, -90],
        [40, 1, 10, 0, 1, 0, -10],
        [40, 1, 10, 0, 0, 0, -10],
    ],
    float,
)


@pytest.fixture(scope="module")
def small(hand_made: Callable[..., RoadNetwork]) -> RoadNetwork:
    return hand_made(
        4,
        [(0, 1), (0, 2), (1, 3), (2, 3)],
        turn=[TURNS.index(turn) for turn in ("left", "right", "slight_left", "uturn")],
        allowed=[True, True, True, False],
        length=[100, 200, 300, 400],
        speed=[10, 10, 20, 10],
        lanes=[1, 2, 1, 3],
        signal=[False, True, False, False],
        end_xy=[[0, 0], [100, 0], [0, 100], [50, 50]],
    )


def _standardised(raw: NDArray[np.float64]) -> NDArray[np.float64]:
    return (raw - BY_HAND[:3].mean(axis=0)) / BY_HAND[:3].std(axis=0)


def test_features_are_those_of_the_road_driven_onto(small: RoadNetwork) -> None:
    """A feature of the wrong end of a connection, or a masked one in the scaler, would shift a column."""
    scaler = fit_scaler(small)
    np.testing.assert_allclose(scaler.centre, [40, 50])
    np.testing.assert_allclose(static_features(small, scaler), _standardised(BY_HAND), rtol=1e-5, atol=1e-6)


def test_on_the_reference_network_features_are_standardised(small: RoadNetwork) -> None:
    phi = static_features(small, fit_scaler(small))[small.allowed]
    np.testing.assert_allclose(phi.mean(axis=0), 0, atol=1e-6)
    np.testing.assert_allclose(phi.std(axis=0), 1, rtol=1e-5)


def test_an_edit_does_not_change_what_a_weight_means(small: RoadNetwork) -> None:
    """Fitted anew on the edited network, a learnt weight per s.d. would mean another number of seconds there."""
    scaler = fit_scaler(small)
    masked = small.with_allowed([True, False, True, False])
    np.testing.assert_array_equal(static_features(masked, scaler), static_features(small, scaler))
    raw = BY_HAND.copy()
    raw[1, [0, 2]] = 300 / 30, 30  # road 2 now allows 30 m/s
    faster = replace(small, speed=np.array([10, 10, 30, 10], np.float32))
    np.testing.assert_allclose(static_features(faster, scaler), _standardised(raw), rtol=1e-5, atol=1e-6)


def test_a_constant_feature_is_zero_and_keeps_its_unit(hand_made: Callable[..., RoadNetwork]) -> None:
    """Divided by its own s.d. of zero it would be NaN; after an edit it counts in natural units."""
    network = hand_made(3, [(0, 1), (1, 2)], end_xy=[[0, 0], [10, 0], [30, 0]])
    scaler = fit_scaler(network)
    phi = static_features(network, scaler)
    constant = [STATIC.index(name) for name in ("travel_time", "arterial", "speed", "signal", "left", "right")]
    assert (phi[:, constant] == 0).all()
    assert (scaler.scale[constant] == 1).all()
    wider = replace(network, lanes=np.array([1, 2, 1], np.int16))
    np.testing.assert_allclose(static_features(wider, scaler)[:, STATIC.index("arterial")], [1, 0])


def test_a_scaler_survives_json_and_refuses_other_features(small: RoadNetwork) -> None:
    scaler = fit_scaler(small)
    data = scaler.to_dict()
    again = FeatureScaler.from_dict(data)
    np.testing.assert_array_equal(static_features(small, again), static_features(small, scaler))
    with pytest.raises(ValueError, match="features"):
        FeatureScaler.from_dict(data | {"features": data["features"][::-1]})


def test_queues_count_by_their_logarithm() -> None:
    np.testing.assert_allclose(queue_feature(np.array([[0.0, np.e - 1], [99.0, -3.0]])), [[0, 1], [np.log(100), 0]])


def test_every_feature_says_what_it_means() -> None:
    """The report prints the meanings; one that is missing would break it at the end of a long run."""
    assert set(MEANING) == set(FEATURES)
