"""A search state as named tensors and plain facts, and back."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from .evolution import Individual
from .ladder import ORDER, Ladder
from .search import Search, SearchState

SCALARS = ("id", "generation", "operator", "parent", "error", "samples", "seeds", "estimate")
ARRAYS = ("z", "tau", "code", "traffic", "flows")


def save_search(search: Search) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """Tensors for a safetensors file and facts for JSON that together restore a search bit for bit."""
    state = search.state
    everybody: dict[int, Individual] = {}
    for group in (state.population, state.elites, *state.replay):
        everybody |= {one.id: one for one in group}
    individuals = list(everybody.values())
    tensors: dict[str, torch.Tensor] = {}
    for name in ARRAYS:
        present = [one for one in individuals if getattr(one, name) is not None]
        if present:
            tensors[f"individual.{name}"] = _tensor(np.stack([getattr(one, name) for one in present]))
            tensors[f"individual.{name}.id"] = torch.tensor([one.id for one in present])
    for rung in ORDER:
        present = [one for one in individuals if rung in one.quantity]
        if present:
            tensors[f"quantity.{rung}"] = _tensor(np.stack([one.quantity[rung] for one in present]))
            tensors[f"quantity.{rung}.id"] = torch.tensor([one.id for one in present])
    for rung, correction in search.ladder.correction.items():
        tensors |= {f"correction.{rung}.{name}": _tensor(value) for name, value in correction.tensors().items()}
    for kind, memory in _memories(search.ladder):
        if memory:
            for i, name in enumerate(("of", "quantity", "rung")):
                tensors[f"{kind}.{name}"] = _tensor(np.stack([np.asarray(row[i]) for row in memory]))
    tensors |= search.tensors()
    facts = {
        "next_generation": state.generation,
        "next_id": state.next_id,
        "spent": search.ladder.spent,
        "simulations": search.ladder.counts,
        "history": state.history,
        "individuals": [{name: getattr(one, name) for name in SCALARS} for one in individuals],
        "population": [one.id for one in state.population],
        "elites": [one.id for one in state.elites],
        "replay": [[one.id for one in group] for group in state.replay],
    }
    return tensors, facts


def load_search(search: Search, tensors: dict[str, torch.Tensor], facts: dict[str, Any]) -> None:
    """Puts a search back to where `save_search` found it."""
    individuals: dict[int, Individual] = {}
    missing = np.zeros(0, np.float32)
    for row in facts["individuals"]:
        individuals[row["id"]] = Individual(z=missing, tau=missing, **row)
    for name in ARRAYS:
        if f"individual.{name}" in tensors:
            for i, value in zip(
                tensors[f"individual.{name}.id"].tolist(), tensors[f"individual.{name}"].numpy(), strict=True
            ):
                setattr(individuals[i], name, value.copy())
    for rung in ORDER:
        if f"quantity.{rung}" in tensors:
            for i, value in zip(
                tensors[f"quantity.{rung}.id"].tolist(), tensors[f"quantity.{rung}"].numpy(), strict=True
            ):
                individuals[i].quantity[rung] = value.copy()
    ladder = search.ladder
    for rung, correction in ladder.correction.items():
        head = f"correction.{rung}."
        correction.load({k.removeprefix(head): v.numpy().copy() for k, v in tensors.items() if k.startswith(head)})
    for kind, memory in _memories(search.ladder):
        if f"{kind}.of" in tensors:
            columns = [tensors[f"{kind}.{name}"].numpy() for name in ("of", "quantity", "rung")]
            memory[:] = [(of.copy(), q.copy(), int(rung)) for of, q, rung in zip(*columns, strict=True)]
    search.state = SearchState(
        generation=facts["next_generation"],
        next_id=facts["next_id"],
        population=[individuals[i] for i in facts["population"]],
        elites=[individuals[i] for i in facts["elites"]],
        replay=[[individuals[i] for i in group] for group in facts["replay"]],
        history=facts["history"],
    )
    ladder.spent, ladder.counts = facts["spent"], facts["simulations"]
    search.load(tensors)


def _memories(ladder: Ladder) -> list[tuple[str, list[tuple[NDArray[Any], NDArray[Any], int]]]]:
    """What the surrogate and the guidance learn from."""
    return [("archive", ladder.archive), ("guides", ladder.guides)]


def _tensor(array: NDArray[Any]) -> torch.Tensor:
    return torch.from_numpy(np.ascontiguousarray(array))
