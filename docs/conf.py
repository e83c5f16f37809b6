"""Sphinx: ``sphinx-build -W -b html docs FOLDER``. Pages are Markdown (MyST); the reference comes from the docstrings."""

from __future__ import annotations

import re
import sys
from pathlib import Path

from docutils import nodes
from sphinx.ext.napoleon import Config, NumpyDocstring
from sphinx.util.docutils import SphinxDirective

sys.path.insert(0, str(Path(__file__).parents[1]))

import crystaldl  # noqa: E402
from crystaldl.models import registry  # noqa: E402

project = "crystaldl"
author = "The crystaldl developers"
copyright = "The crystaldl developers"
version = release = crystaldl.__version__

extensions = ["myst_parser", "sphinx.ext.autodoc"]
source_suffix = {".md": "markdown"}
exclude_patterns = ["_build", "_static"]
myst_enable_extensions = ["dollarmath", "deflist"]
myst_heading_anchors = 3

html_theme = "alabaster"
html_title = f"crystaldl {version}"
html_theme_options = {
    "description": "Measured diffraction in, quantitative structure out",
    "fixed_sidebar": True,
    "page_width": "1100px",
}
html_sidebars = {"**": ["about.html", "navigation.html", "searchbox.html"]}

autodoc_member_order = "bysource"
autodoc_typehints = "none"  # the docstrings say more than annotations
autodoc_default_options = {"members": True, "show-inheritance": True}

_NUMPY_STYLE = Config(
    napoleon_use_rtype=False,
    napoleon_custom_sections=[("Attributes", "params_style")],  # which takes several names a line
)


# ---------------------------------------------------------------------- docstrings that are read as plain text, too

_LITERAL = re.compile(r"(``.*?``|`[^`]+`)")
_BARS = re.compile(r"\|(?=\S)")
_STAR = re.compile(r"(?<=\w)\*(?=[\s,;.)—–]|$)|(?<=[(\s])\*(?=\w+[,)])")  # a*, b*; (*shape, 3)
_UNDERSCORE = re.compile(r"(?<=\w)_(?=[\s,;.)]|$)")


def _escape(line: str) -> str:
    """``|Q|`` is a length, not a substitution; a lone ``*`` no emphasis; ``R_`` no link. Literals stay as they are."""
    parts = _LITERAL.split(line)
    for i in range(0, len(parts), 2):
        for pattern in (_BARS, _STAR, _UNDERSCORE):
            parts[i] = pattern.sub(lambda match: "\\" + match.group(), parts[i])
    return "".join(parts)


def read_docstring(app, what, name, obj, options, lines) -> None:
    """From NumPy style to reStructuredText, in place of the extension's own hook."""
    _escape_outside_literals(lines)
    # of a property it would take what stands before the first colon for a type
    kind = "method" if what in ("property", "attribute") else what
    lines[:] = NumpyDocstring(lines, _NUMPY_STYLE, app, kind, name, obj, options).lines()


def _escape_outside_literals(lines) -> None:
    literal_indent = None
    for i, line in enumerate(lines):
        indent = len(line) - len(line.lstrip())
        if literal_indent is not None:
            if line.strip() and indent <= literal_indent:
                literal_indent = None
            else:
                continue
        lines[i] = _escape(line)
        if line.rstrip().endswith("::"):
            literal_indent = indent


# ---------------------------------------------------------------------- nothing public stays out


def complete_reference(app, docname, source) -> None:
    """Add to the reference what `crystaldl` offers and no section names."""
    if docname != "api":
        return
    missing = [name for name in crystaldl._PUBLIC if f":: crystaldl.{name}\n" not in source[0]]
    kinds = {name: "autoclass" if isinstance(getattr(crystaldl, name), type) else "autofunction" for name in missing}
    if missing:
        lines = "\n".join(f".. {kind}:: crystaldl.{name}" for name, kind in kinds.items())
        source[0] += f"\n## Further names\n\n```{{eval-rst}}\n{lines}\n```\n"


# ---------------------------------------------------------------------- tables that follow the shipped models


class ModelCards(SphinxDirective):
    """``{modelcards} powder``: what the cards of a wing's models say of them, as tables."""

    required_arguments = 1

    def run(self):
        found = [registry.card(name) for name in registry.available(self.arguments[0])]
        return [self._model(card) for card in found]

    def _model(self, card):
        section = nodes.container()
        default = ", the default" if card.default else ""
        about = f": {card.title}{default}. {card.parameters:,} parameters, {card.bytes / 1e6:.1f} MB."
        section += nodes.paragraph("", "", nodes.strong("", card.name), nodes.Text(about))
        rows = [(f["data"], f["metric"], self._value(f["value"])) for f in card.figures]
        if rows:
            section += self._table(("measured on", "what", "value"), rows)
            commands = dict.fromkeys(f["command"] for f in card.figures)
            paragraph = nodes.paragraph("", "Reproduced by ")
            for i, command in enumerate(commands):
                paragraph += ([nodes.Text(" and ")] if i else []) + [nodes.literal("", command)]
            section += paragraph
        if card.notes:
            section += nodes.paragraph("", card.notes)
        return section

    @staticmethod
    def _value(value) -> str:
        return f"{value:.4g}" if isinstance(value, float) else str(value)

    @staticmethod
    def _table(header, rows):
        group = nodes.tgroup(cols=len(header))
        group += [nodes.colspec(colwidth=width) for width in (50, 40, 10)]
        head, body = nodes.thead(), nodes.tbody()
        for place, entries in ((head, [header]), (body, rows)):
            for row in entries:
                line = nodes.row()
                for cell in row:
                    line += nodes.entry("", nodes.paragraph("", cell))
                place += line
        group += [head, body]
        table = nodes.table()
        table += group
        return table


def setup(app) -> dict:
    app.connect("autodoc-process-docstring", read_docstring)
    app.connect("source-read", complete_reference)
    app.add_directive("modelcards", ModelCards)
    return {"parallel_read_safe": True}
