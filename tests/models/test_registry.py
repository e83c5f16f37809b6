"""The registry: exact names, weights checked before they are parsed, cards as data."""

from __future__ import annotations

import hashlib
import json

import pytest
import torch

from crystaldl.errors import ModelIntegrityError, UnknownModelError
from crystaldl.models import registry as models

NAME = "powder-test-v1"


def fields(**changes) -> dict:
    return {
        "name": NAME,
        "task": "powder",
        "title": "a <test>",
        "architecture": "Net",
        "arguments": {"width": 4},
        "parameters": 12,
        "default": True,
        "figures": [{"data": "d", "metric": "top-1", "value": 0.5, "command": "crystaldl --version"}],
    } | changes


def weights() -> dict:
    return {
        "matrix": torch.linspace(-1, 1, 12).reshape(3, 4),
        "variance": torch.full((3,), 1e-9),
        "huge": torch.full((2, 2), 1e6),
        "count": torch.tensor(7),
    }


@pytest.fixture
def folder(tmp_path):
    models.write_model(weights(), fields(), tmp_path)
    return tmp_path


def test_round_trip(folder):
    loaded = models.load_weights(NAME, folder)
    assert loaded.keys() == weights().keys()
    assert loaded["matrix"].dtype == torch.float32 and torch.equal(loaded["matrix"], weights()["matrix"].half().float())
    # what float16 cannot hold is kept as it is
    for key in ("variance", "huge", "count"):
        assert torch.equal(loaded[key], weights()[key])


def test_card(folder):
    card = models.registry(folder)[NAME]
    file = folder / "weights" / card.file
    assert card.bytes == file.stat().st_size and card.sha256 == hashlib.sha256(file.read_bytes()).hexdigest()
    assert card == models.card(NAME, folder) and json.loads(json.dumps(card.to_dict())) == card.to_dict()
    text = card._repr_html_()
    assert NAME in text and "a &lt;test&gt;" in text and "crystaldl --version" in text
    with pytest.raises(AttributeError):
        card.name = "other"


def test_names(folder):
    models.write_model(weights(), fields(name="powder-a-v1", default=False), folder)
    assert models.available("powder", folder) == [NAME, "powder-a-v1"] and models.available("stem", folder) == []
    assert models.default("powder", folder) == NAME
    with pytest.raises(UnknownModelError, match="task='stem' has 0 default"):
        models.default("stem", folder)
    for wrong in ("powder-test", "POWDER-TEST-V1", "../cards/" + NAME, ""):
        with pytest.raises(UnknownModelError, match=f"the known models are: {NAME}, powder-a-v1"):
            models.load_weights(wrong, folder)


def test_damaged_weights(folder):
    file = folder / "weights" / f"{NAME}.safetensors"
    content = file.read_bytes()
    flipped = bytearray(content)
    flipped[-3] ^= 1
    for damaged in (bytes(flipped), content[:-5], content[:4], b""):
        file.write_bytes(damaged)
        with pytest.raises(ModelIntegrityError, match=f"{NAME}.safetensors is damaged"):
            models.load_weights(NAME, folder)
    file.unlink()
    with pytest.raises(UnknownModelError, match="is missing"):
        models.load_weights(NAME, folder)


def test_not_safetensors_at_all(folder):
    content = b"garbage"
    (folder / "weights" / f"{NAME}.safetensors").write_bytes(content)
    path = folder / "cards" / f"{NAME}.json"
    entries = json.loads(path.read_text()) | {"sha256": hashlib.sha256(content).hexdigest()}
    path.write_text(json.dumps(entries))
    with pytest.raises(ModelIntegrityError, match="is not safetensors"):
        models.load_weights(NAME, folder)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"sha256": None}, "lacks sha256"),
        ({"colour": "red"}, "unknown entries colour"),
        ({"name": "powder-other-v1"}, "for another model"),
    ],
)
def test_bad_card(folder, change, message):
    path = folder / "cards" / f"{NAME}.json"
    entries = {k: v for k, v in (json.loads(path.read_text()) | change).items() if v is not None}
    path.write_text(json.dumps(entries))
    with pytest.raises(ModelIntegrityError, match=message):
        models.registry(folder)


def test_bad_card_syntax(folder):
    path = folder / "cards" / f"{NAME}.json"
    for text in ("{", "[]", ""):
        path.write_text(text)
        with pytest.raises(ModelIntegrityError, match=f"{NAME}.json"):
            models.registry(folder)


def test_shipped_names_are_frozen(folder, monkeypatch):
    monkeypatch.setattr(models, "PACKAGE_FOLDER", folder)
    models.write_model(weights(), fields(title="another title"), folder)  # the card may change
    other = weights() | {"count": torch.tensor(8)}
    with pytest.raises(ValueError, match="frozen"):
        models.write_model(other, fields(), folder)
    models.write_model(other, fields(), folder, overwrite=True)
    assert models.load_weights(NAME)["count"] == 8


def test_too_large(tmp_path):
    with pytest.raises(ValueError, match="more than"):
        models.write_model({"a": torch.zeros(4_000_000)}, fields(), tmp_path)
    assert not list(tmp_path.iterdir())


def test_shipped_models_are_whole():
    """Every shipped card has its weights, in the size the package allows, and one default per task."""
    cards = models.registry()
    for name in cards:
        models.load_weights(name)
    assert sum(card.bytes for card in cards.values()) <= 30_000_000
    for task in {card.task for card in cards.values()}:
        if task != "diffuse":  # its default method needs no network
            assert models.default(task) in cards


def test_the_package_ships_its_powder_models():
    """Other tests skip where no model ships: this one does not."""
    names = {"powder-powdernet-v4", "powder-npcnn-v2", "powder-arbiter-v9", "powder-families-v4"}
    assert names <= set(models.available("powder")) and models.default("powder") == "powder-powdernet-v4"
    for name in names:
        assert models.load_weights(name)
