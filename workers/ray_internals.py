"""What only Ray's private interfaces tell; all of Throng's use of them is here."""

from __future__ import annotations

from typing import Any

from ray._private import state
from ray.exceptions import ActorDiedError


def has_process(actor: Any) -> bool:
    """Whether the actor was given its resources and a process; one that waits for them has no address.

    False where this cannot be asked: through Ray's client (`ray://`).
    """
    return _address(actor).get("Port", 0) > 0


def node_of(actor: Any) -> str | None:
    """The id of the node that an actor works on; None if it has none."""
    return _address(actor)["NodeID"] if has_process(actor) else None


def _address(actor: Any) -> dict[str, Any]:
    try:
        known = state.actors(actor._actor_id.hex())
    except Exception:  # what the client raises is not specified
        return {}
    return known["Address"] if known else {}


def lost_with_node(error: Exception) -> bool:
    """Whether an actor died because its node did, or was taken away: nothing that its calls could be blamed for."""
    reasons = ("node has died", "placement group was removed")
    return isinstance(error, ActorDiedError) and (error.preempted or any(reason in str(error) for reason in reasons))
