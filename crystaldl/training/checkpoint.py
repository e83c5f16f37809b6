"""Training checkpoints: a directory of small safetensors files and one ``state.json``. Nothing is ever unpickled."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from ..errors import ModelIntegrityError

SHARD_BYTES = 15_000_000  # files stay under 16 MB, so that a checkpoint travels through hosts with a size limit
STATE_FILE = "state.json"


def _write_shards(folder: Path, group: str, tensors: Mapping[str, Tensor]) -> dict:
    """Write `tensors` to ``<group>-00000.safetensors`` …; a tensor larger than a file is cut into pieces."""
    index: dict = {"files": [], "tensors": {}}
    shard: dict[str, Tensor] = {}
    size = 0

    def flush() -> None:
        nonlocal shard, size
        name = f"{group}-{len(index['files']):05d}.safetensors"
        save_file(shard, folder / name)
        index["files"].append(name)
        shard, size = {}, 0

    for name, tensor in tensors.items():
        flat = tensor.detach().to("cpu", copy=True).contiguous().reshape(-1)
        pieces = flat.split(max(1, SHARD_BYTES // flat.element_size())) if flat.numel() else (flat,)
        index["tensors"][name] = {"shape": list(tensor.shape), "pieces": len(pieces)}
        for number, piece in enumerate(pieces):
            nbytes = piece.numel() * piece.element_size()
            if shard and size + nbytes > SHARD_BYTES:
                flush()
            shard[f"{name}|{number}"] = piece.clone()
            size += nbytes
    if shard:
        flush()
    return index


def _read_shards(folder: Path, index: dict) -> dict[str, Tensor]:
    pieces: dict[str, Tensor] = {}
    for name in index["files"]:
        try:
            pieces.update(load_file(folder / name))
        except (SafetensorError, OSError) as error:
            raise ModelIntegrityError(f"checkpoint file {folder / name} cannot be read: {error}") from error
    out = {}
    for name, entry in index["tensors"].items():
        parts = [pieces.pop(f"{name}|{number}", None) for number in range(entry["pieces"])]
        if any(part is None for part in parts):
            raise ModelIntegrityError(f"checkpoint {folder} lacks part of the tensor {name!r}.")
        out[name] = (parts[0] if len(parts) == 1 else torch.cat(parts)).reshape(entry["shape"])
    return out


def write_checkpoint(folder: Path, groups: Mapping[str, Mapping[str, Tensor]], state: dict) -> Path:
    """Write a checkpoint so that an interruption at any moment leaves a whole one.

    Parameters
    ----------
    folder : Path
        The directory of the checkpoint; an older one of that name is replaced.
    groups : mapping of mappings
        Tensors by group (``model``, ``ema``, ``optimizer``) and name.
    state : dict
        Everything else, as JSON holds it.
    """
    folder = Path(folder)
    beside = folder.with_name(f"{folder.name}.new")
    old = folder.with_name(f"{folder.name}.old")
    shutil.rmtree(beside, ignore_errors=True)
    beside.mkdir(parents=True)
    shards = {group: _write_shards(beside, group, tensors) for group, tensors in groups.items()}
    (beside / STATE_FILE).write_text(json.dumps({**state, "shards": shards}, indent=1), encoding="utf-8")
    # A directory cannot be renamed over another one. Between the two renames only `.old` exists; find_checkpoint
    # takes it then, so no moment is without a whole checkpoint.
    if folder.exists():
        shutil.rmtree(old, ignore_errors=True)
        os.replace(folder, old)
    os.replace(beside, folder)
    shutil.rmtree(old, ignore_errors=True)
    return folder


def find_checkpoint(path: str | os.PathLike) -> Path:
    """The checkpoint directory at `path`, which may also be the run's output directory that holds it."""
    path = Path(path)
    for place in (path, path / "checkpoint"):
        for candidate in (place, place.with_name(f"{place.name}.old")):
            if (candidate / STATE_FILE).is_file():
                return candidate
    raise FileNotFoundError(f"{path} holds no checkpoint (a directory with a {STATE_FILE}).")


def read_state(path: str | os.PathLike) -> dict:
    """The ``state.json`` of the checkpoint at `path`."""
    folder = find_checkpoint(path)
    try:
        return json.loads((folder / STATE_FILE).read_text(encoding="utf-8"))
    except ValueError as error:
        raise ModelIntegrityError(f"{folder / STATE_FILE} is not valid JSON: {error}") from error


def read_checkpoint(path: str | os.PathLike) -> tuple[dict[str, dict[str, Tensor]], dict]:
    """Tensors by group, and the state, of the checkpoint at `path` (the inverse of `write_checkpoint`)."""
    folder, state = find_checkpoint(path), read_state(path)
    return {group: _read_shards(folder, index) for group, index in state["shards"].items()}, state


def load_checkpoint_weights(path: str | os.PathLike, ema: bool = True) -> dict[str, Tensor]:
    """The weights in a checkpoint directory, a run directory or a single ``.safetensors`` file.

    Parameters
    ----------
    path : path-like
        Where the weights are.
    ema : bool
        The exponential moving average of the weights (what is evaluated and shipped), else the raw weights.
    """
    path = Path(path)
    if path.is_file():
        try:
            return load_file(path)
        except SafetensorError as error:
            raise ModelIntegrityError(f"{path} is not a readable safetensors file: {error}") from error
    folder, state = find_checkpoint(path), read_state(path)
    return _read_shards(folder, state["shards"]["ema" if ema else "model"])


def pack_optimizer(optimizer: torch.optim.Optimizer) -> tuple[dict[str, Tensor], dict]:
    """Split an optimizer's state into tensors and what JSON holds."""
    whole = optimizer.state_dict()
    tensors, scalars = {}, {}
    for number, entries in whole["state"].items():
        for name, value in entries.items():
            (tensors if isinstance(value, Tensor) else scalars)[f"{number}.{name}"] = value
    return tensors, {"scalars": scalars, "param_groups": whole["param_groups"]}


def unpack_optimizer(optimizer: torch.optim.Optimizer, tensors: Mapping[str, Tensor], rest: dict) -> None:
    """Put back what `pack_optimizer` took apart."""
    state: dict[int, dict] = {}
    for key, value in {**tensors, **rest["scalars"]}.items():
        number, name = key.split(".", 1)
        state.setdefault(int(number), {})[name] = value
    groups = []
    for saved, fresh in zip(rest["param_groups"], optimizer.param_groups, strict=True):
        # JSON knows no tuples (betas)
        groups.append({k: tuple(v) if isinstance(fresh.get(k), tuple) else v for k, v in saved.items()})
    optimizer.load_state_dict({"state": state, "param_groups": groups})
