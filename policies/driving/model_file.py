"""World models on disk: tensors in safetensors, all else in JSON; nothing to unpickle."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from ...scenarios.errors import InputError
from .world_model import WorldModel, WorldModelSettings

MODEL, FACTS = "model.safetensors", "model.json"
_FORMAT = 1


def save_model(model: WorldModel, folder: Path, **facts: Any) -> None:
    """Writes both files into `folder`, each complete or not at all; `facts` go into the JSON."""
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {name: one.detach().cpu().contiguous() for name, one in model.state_dict().items()}
    save_file(tensors, folder / f"{MODEL}.partial")
    (folder / f"{MODEL}.partial").replace(folder / MODEL)
    text = json.dumps({"format": _FORMAT, "settings": asdict(model.settings), **facts}, indent=1)
    (folder / f"{FACTS}.partial").write_text(text + "\n")
    (folder / f"{FACTS}.partial").replace(folder / FACTS)


def load_model(folder: Path) -> WorldModel:
    """In evaluation mode, on the CPU.

    Raises:
        InputError: no model is there, or another version's.
    """
    for name in (MODEL, FACTS):
        if not (folder / name).is_file():
            raise InputError(f"{folder}: no world model ({name} is missing); `throng worldmodel train` makes one")
    try:
        facts = json.loads((folder / FACTS).read_text())
        if facts["format"] != _FORMAT:
            raise ValueError(f"format {facts['format']}")
        model = WorldModel(WorldModelSettings(**facts["settings"]))
        model.load_state_dict(load_file(folder / MODEL))
    except (OSError, ValueError, KeyError, TypeError, RuntimeError, SafetensorError) as error:
        raise InputError(f"{folder}: not a world model that this version can read ({error})") from error
    return model.eval()


def optimizer_tensors(optimizer: torch.optim.Optimizer) -> dict[str, torch.Tensor]:
    """All that an optimiser remembers; what else it has follows from how it is made."""
    state = optimizer.state_dict()["state"]
    return {f"{i}.{name}": torch.as_tensor(one).cpu().clone() for i, own in state.items() for name, one in own.items()}


def restore_optimizer(optimizer: torch.optim.Optimizer, tensors: Mapping[str, torch.Tensor]) -> None:
    """Makes it remember what `optimizer_tensors` gave."""
    state: dict[int, dict[str, torch.Tensor]] = {}
    for key, one in tensors.items():
        i, name = key.split(".", 1)
        state.setdefault(int(i), {})[name] = one.clone()
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})


def save_optimizer(optimizer: torch.optim.Optimizer, path: Path) -> None:
    """Its tensors."""
    save_file(optimizer_tensors(optimizer), path)


def load_optimizer(optimizer: torch.optim.Optimizer, path: Path) -> None:
    restore_optimizer(optimizer, load_file(path))
