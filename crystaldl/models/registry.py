"""The registry of shipped models: cards are data, weights are safetensors checked against their SHA-256.

A folder of models holds ``cards/<name>.json`` and ``weights/<file>``. Names are exact, frozen and versioned.
"""

from __future__ import annotations

import hashlib
import html
import json
import os
from collections.abc import Mapping
from dataclasses import MISSING, asdict, dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import ModelIntegrityError, UnknownModelError
from ..storage.atomic import write_bytes, write_text

if TYPE_CHECKING:
    from torch import Tensor

PACKAGE_FOLDER = Path(__file__).parent
MAX_FILE_BYTES = 12_000_000  # what one weights file in the package may take


@dataclass(frozen=True)
class ModelCard:
    """What is known about one shipped model.

    Parameters
    ----------
    name : str
        Exact, versioned name, such as ``powder-npcnn-v2``.
    task : str
        ``"powder"``, ``"diffuse"`` or ``"stem"``.
    title : str
        One line for people.
    architecture : str
        Class name in the ``network`` module of the wing.
    arguments : dict
        Keyword arguments of that class.
    parameters : int
        Number of trainable parameters.
    file, sha256, bytes : str, str, int
        The weights file, its hash and its size.
    default : bool
        Whether ``method="auto"`` takes this model.
    input : str
        What the network expects: axis, normalisation, units.
    operating_point : dict
        Thresholds, temperatures and priors that belong to the weights.
    training : dict
        Stream, seeds, counts, hardware, wall time and the commit of the recipe.
    figures : tuple of dict
        Measured figures: ``data``, ``metric``, ``value`` and the ``command`` that reproduces it.
    reference, notes : str
        The publication the architecture comes from, and anything else.
    """

    name: str
    task: str
    title: str
    architecture: str
    arguments: dict[str, Any]
    parameters: int
    file: str
    sha256: str
    bytes: int
    default: bool = False
    input: str = ""
    operating_point: dict[str, Any] = field(default_factory=dict)
    training: dict[str, Any] = field(default_factory=dict)
    figures: tuple[dict[str, Any], ...] = ()
    reference: str = ""
    notes: str = ""

    def __post_init__(self) -> None:
        object.__setattr__(self, "figures", tuple(dict(figure) for figure in self.figures))

    def to_dict(self) -> dict[str, Any]:
        """The card as JSON holds it."""
        return {**asdict(self), "figures": list(self.figures)}

    def _repr_html_(self) -> str:
        facts = {
            "task": self.task,
            "architecture": f"{self.architecture} ({self.parameters:,} parameters)",
            "input": self.input,
            "weights": f"{self.file}, {self.bytes / 1e6:.1f} MB, SHA-256 {self.sha256[:12]}…",
            "reference": self.reference,
            "notes": self.notes,
        }
        rows = "".join(f"<tr><th>{k}</th><td>{html.escape(v)}</td></tr>" for k, v in facts.items() if v)
        figures = "".join(
            f"<tr><td>{html.escape(str(f['metric']))}</td><td>{html.escape(_number(f['value']))}</td>"
            f"<td>{html.escape(str(f['data']))}</td><td><code>{html.escape(str(f['command']))}</code></td></tr>"
            for f in self.figures
        )
        if figures:
            figures = f"<table><tr><th>metric</th><th>value</th><th>data</th><th>command</th></tr>{figures}</table>"
        default = " (default)" if self.default else ""
        return f"<b>{html.escape(self.name)}</b>{default}: {html.escape(self.title)}<table>{rows}</table>{figures}"


def _number(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _read_card(path: Path) -> ModelCard:
    try:
        entries = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ModelIntegrityError(f"model card {path} cannot be read: {error}") from error
    if not isinstance(entries, dict):
        raise ModelIntegrityError(f"model card {path} is not a JSON object.")
    known = {f.name for f in fields(ModelCard)}
    needed = {f.name for f in fields(ModelCard) if f.default is MISSING and f.default_factory is MISSING}
    if missing := sorted(needed - entries.keys()):
        raise ModelIntegrityError(f"model card {path} lacks {', '.join(missing)}.")
    if surplus := sorted(entries.keys() - known):
        raise ModelIntegrityError(f"model card {path} has the unknown entries {', '.join(surplus)}.")
    if entries["name"] != path.stem:
        raise ModelIntegrityError(f"model card {path} is for another model, {entries['name']!r}.")
    return ModelCard(**entries)


def _places(folder: str | os.PathLike | None) -> list[Path]:
    """The folder given; else the package's own, and those of the environment variable CRYSTALDL_MODELS."""
    if folder is not None:
        return [Path(folder)]
    return [PACKAGE_FOLDER, *(Path(place) for place in os.environ.get("CRYSTALDL_MODELS", "").split(os.pathsep) if place)]


def _place_of(name: str, folder: str | os.PathLike | None) -> Path:
    """The first folder that has a card of that name: what ships cannot be replaced by a namesake."""
    places = _places(folder)
    return next((place for place in places if (place / "cards" / f"{name}.json").is_file()), places[0])


def registry(folder: str | os.PathLike | None = None) -> dict[str, ModelCard]:
    """All models by name.

    Parameters
    ----------
    folder : path-like, optional
        A folder with ``cards/`` and ``weights/``. When left out, the package's own, and beside it the folders that the
        environment variable ``CRYSTALDL_MODELS`` lists (separated as in PATH), as in all functions here.
    """
    paths = [path for place in reversed(_places(folder)) for path in sorted((place / "cards").glob("*.json"))]
    return {path.stem: _read_card(path) for path in paths}


def available(task: str | None = None, folder: str | os.PathLike | None = None) -> list[str]:
    """Names of the models for `task` (all tasks when left out), the default first."""
    cards = [card for card in registry(folder).values() if task is None or card.task == task]
    return [card.name for card in sorted(cards, key=lambda card: (card.task, not card.default, card.name))]


def default(task: str, folder: str | os.PathLike | None = None) -> str:
    """Name of the model that ``method="auto"`` takes for `task`."""
    cards = registry(PACKAGE_FOLDER if folder is None else folder).values()     # a folder of one's own changes no default
    chosen = [card.name for card in cards if card.task == task and card.default]
    if len(chosen) != 1:
        raise UnknownModelError(f"task={task!r} has {len(chosen)} default models, expected one.")
    return chosen[0]


def card(name: str, folder: str | os.PathLike | None = None) -> ModelCard:
    """The card of the model of that exact name.

    Raises
    ------
    UnknownModelError
        There is none; the message lists the known names.
    """
    names = available(folder=folder)
    if name not in names:
        known = ", ".join(names) or "none"
        raise UnknownModelError(f"model={name!r} is not known; the known models are: {known}.")
    return _read_card(_place_of(name, folder) / "cards" / f"{name}.json")


def load_weights(name: str, folder: str | os.PathLike | None = None) -> dict[str, Tensor]:
    """The weights of a model as float32 tensors on the CPU.

    The file's SHA-256 is compared with the card before anything is parsed, and only safetensors are read.

    Raises
    ------
    UnknownModelError
        No model has that name, or its weights file is missing.
    ModelIntegrityError
        The file is not the one the card describes.
    """
    entry = card(name, folder)
    path = _place_of(name, folder) / "weights" / entry.file
    if not path.is_file():
        raise UnknownModelError(f"model={name!r} is known, but its weights file {path} is missing.")
    content = path.read_bytes()
    if (found := hashlib.sha256(content).hexdigest()) != entry.sha256:
        raise ModelIntegrityError(
            f"weights file {path} is damaged: its SHA-256 is {found[:12]}… with {len(content)} bytes, "
            f"the card says {entry.sha256[:12]}… with {entry.bytes} bytes."
        )
    from safetensors import SafetensorError
    from safetensors.torch import load

    try:
        tensors = load(content)
    except SafetensorError as error:
        raise ModelIntegrityError(f"weights file {path} is not safetensors: {error}.") from error
    return {key: value.float() if value.is_floating_point() else value for key, value in tensors.items()}


def write_model(
    state_dict: Mapping[str, Tensor],
    card_fields: Mapping[str, Any],
    folder: str | os.PathLike,
    half: bool = True,
    overwrite: bool = False,
) -> ModelCard:
    """Store weights and card so that `load_weights` finds them (used by recipes).

    Parameters
    ----------
    state_dict : mapping
        The weights.
    card_fields : mapping
        Fields of `ModelCard`, without ``file``, ``sha256`` and ``bytes``, which are filled in here.
    folder : path-like
        Where ``cards/`` and ``weights/`` are, or are to be made.
    half : bool
        Store matrices and kernels as float16. Vectors (biases, batch statistics) stay float32: they cost nothing
        and small variances would underflow; so does any tensor that float16 cannot hold.
    overwrite : bool
        Allow other weights under a name that the package itself already ships. Shipped names are frozen.
    """
    import torch
    from safetensors.torch import save

    tensors = {}
    for key, value in state_dict.items():
        value = value.detach().to("cpu", copy=True).contiguous()
        if value.is_floating_point():
            value = value.float()
            if half and value.ndim > 1 and torch.isfinite(value.half()).all():
                value = value.half()
        tensors[key] = value
    content = save(tensors)
    name = card_fields["name"]
    if len(content) > MAX_FILE_BYTES:
        raise ValueError(f"the weights of {name!r} take {len(content)} bytes, more than {MAX_FILE_BYTES}.")
    entry = ModelCard(
        **card_fields,
        file=f"{name}.safetensors",
        sha256=hashlib.sha256(content).hexdigest(),
        bytes=len(content),
    )
    folder = Path(folder)
    card_path = folder / "cards" / f"{name}.json"
    shipped = folder.resolve() == PACKAGE_FOLDER.resolve() and card_path.exists()
    if shipped and not overwrite and _read_card(card_path).sha256 != entry.sha256:
        raise ValueError(f"the name {name!r} is frozen: other weights need a new name (or overwrite=True).")
    for place in (folder / "weights", folder / "cards"):
        place.mkdir(parents=True, exist_ok=True)
    write_bytes(folder / "weights" / entry.file, content)
    write_text(card_path, json.dumps(entry.to_dict(), indent=2, ensure_ascii=False) + "\n")
    return entry
