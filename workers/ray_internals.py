"""What only Ray's private interfaces tell; all of Throng's use of them is here."""

from __future__ import annotations

from typing import Any

from ray._private import state
from ray.exceptions import ActorDiedError


def has_process(actor: Any) -> bool:
    """Whether the actor was given its resources and a process; one that waits for them has no address.

    False where this cannot be asked: through Ray's client (`ray://`).
    """
    try:
        known = state.actors(actor._actor_id.hex())
    except Exception:  # what the client raises is not specified
        return False
    return bool(known) and known["Address"]["Port"] > 0


def lost_with_node(error: Exception) -> bool:
    """Whether an actor died because its node did, or was taken away: nothing that its calls could be blamed for."""
    return isinstance(error, ActorDiedError) and (error.preempted or "node has died" in str(error))
