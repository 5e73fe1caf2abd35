"""The edges of a road from the areas that it consists of."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import shapely
from shapely.geometry.polygon import orient

from .recording import Array

SEAM = 0.1  # metres of a gap between two areas that is none
SLIVER = 2.0  # square metres of a hole that is none


def road_edges(areas: Iterable[shapely.Geometry]) -> list[Array]:
    """Closed outlines `[points, 2]` of all areas together, with the road on their left; seams inside are gone."""
    joined = shapely.union_all([area.buffer(SEAM, join_style="mitre") for area in areas]).buffer(
        -SEAM, join_style="mitre"
    )
    rings = []
    for part in getattr(joined, "geoms", [joined]):
        if not part.is_empty:
            whole = orient(part)
            holes = (ring for ring in whole.interiors if shapely.Polygon(ring).area > SLIVER)
            rings += [whole.exterior, *holes]
    return [np.asarray(shapely.simplify(ring, 0.02).coords, np.float64) for ring in rings]


def area(outline: Array) -> shapely.Geometry:
    """A valid polygon, or several, of an outline that may cross itself."""
    return shapely.make_valid(shapely.Polygon(outline)) if len(outline) > 2 else shapely.Polygon()
