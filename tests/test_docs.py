"""The documentation builds without a warning and holds what it promises."""

from __future__ import annotations

import importlib.util
import re
import subprocess
import sys
from pathlib import Path

import pytest

import crystaldl
from crystaldl.models import registry

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
PAGES = sorted(DOCS.glob("*.md")) + [
    path for path in (ROOT / "CHANGELOG.md", ROOT / "CONTRIBUTING.md") if path.exists()
]
SPHINX = all(importlib.util.find_spec(name) for name in ("sphinx", "myst_parser"))
MACHINE_PATH = re.compile(r"(?<![\w.:/\]])/(?:home|root|tmp|opt|work|Users|mnt)/\w")

pytestmark = [
    pytest.mark.skipif(not DOCS.is_dir(), reason="not a source checkout"),
    pytest.mark.timeout(900),  # ten seconds of work, but a busy machine must not fail the build
]


@pytest.fixture(scope="module")
def html(tmp_path_factory):
    """The built pages, every warning being an error."""
    if not SPHINX:
        pytest.skip("sphinx and myst-parser are not installed (extra docs)")
    out = tmp_path_factory.mktemp("html")
    command = [sys.executable, "-m", "sphinx", "-q", "-E", "-W", "--keep-going", "-b", "html", str(DOCS), str(out)]
    done = subprocess.run([*command, "-d", str(out / ".doctrees")], capture_output=True, text=True, timeout=800)
    assert done.returncode == 0, done.stdout + done.stderr
    return {path.stem: path.read_text(encoding="utf-8") for path in out.glob("*.html")}


def test_builds_without_a_warning(html):
    assert {page.stem for page in DOCS.glob("*.md")} <= set(html)


def test_every_public_name_is_in_the_reference(html):
    assert [name for name in crystaldl._PUBLIC if f'id="crystaldl.{name}"' not in html["api"]] == []


def test_no_markup_is_left_over(html):
    """What reStructuredText did not understand would stand in the text: field marks, roles, dashes under a heading."""
    text = re.sub(r"<pre>.*?</pre>|<[^>]*>", " ", html["api"], flags=re.DOTALL)
    assert not re.findall(r":param\b|:type\b|:math:|-{5,}|``", text)


def test_accuracy_shows_the_figures_of_every_model(html):
    text = re.sub(r"<[^>]*>", "", html["accuracy"])
    for name, card in registry.registry().items():
        assert name in text
        for figure in card.figures:
            value = figure["value"]
            assert (f"{value:.4g}" if isinstance(value, float) else str(value)) in text


def test_links_lead_somewhere():
    for page in PAGES:
        links = re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", page.read_text(encoding="utf-8"))
        assert not [link for link in links if "://" not in link and not (page.parent / link).exists()], page.name


def test_every_page_is_in_the_table_of_contents():
    index = (DOCS / "index.md").read_text(encoding="utf-8")
    entries = re.search(r"```\{toctree\}(.*?)```", index, flags=re.DOTALL).group(1).split()
    for page in DOCS.glob("*.md"):
        assert page.stem == "index" or any(page.match(f"{entry}.md") for entry in entries), page.name


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_pages_show_no_path_of_a_machine(page):
    assert not MACHINE_PATH.findall(page.read_text(encoding="utf-8"))


def test_changelog_knows_this_version():
    assert f"## {crystaldl.__version__}" in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
