"""What the pages of the course need beyond myst-nb: MathML, figures with alt texts and captions, links by name."""

from __future__ import annotations

import re
from typing import Any

from bs4 import BeautifulSoup  # comes with the theme
from docutils import nodes
from math_core import LatexError, LatexToMathML
from sphinx import addnodes
from sphinx.application import Sphinx
from sphinx.errors import ExtensionError

SLIDER = "A slider stands here"     # how the line begins that is stored in place of a widget
PLAYGROUND = "10_playground"
NAME = re.compile(r"\d\d_\w+")                           # how a notebook is called in running text
LATEX = LatexToMathML(fancy_error=False)


def mathml(latex: str, block: bool) -> str:
    """MathML of an expression.

    Raises:
        ExtensionError: the expression cannot be converted; the build ends.
    """
    try:
        return with_primes(LATEX.convert_with_local_state(latex, displaystyle=block))
    except LatexError as error:
        raise ExtensionError(f"this cannot be shown as mathematics: {latex!r}: {error}") from error


def with_primes(markup: str) -> str:
    """Primes beside their letter, where the font draws them high already.

    As a superscript a prime needs a glyph of its own, which some browsers do not choose: it would be tiny.
    """
    tree = BeautifulSoup(markup, "html.parser")
    for script in tree(["msup", "msubsup"]):
        base, *others, last = list(script.children)
        if last.name == "mo" and last.get_text() and set(last.get_text()) <= set("′″‴"):
            last["lspace"] = last["rspace"] = "0"
            primed = base.wrap(tree.new_tag("mrow"))
            primed.append(last.extract())
            script.name = "msub" if others else "mrow"
    return str(tree)


def inline_math(translator: Any, node: nodes.math) -> None:
    translator.body.append(mathml(node.astext(), block=False))
    raise nodes.SkipNode


def block_math(translator: Any, node: nodes.math_block) -> None:
    translator.body.append(f'<div class="math-block">{mathml(node.astext(), block=True)}</div>\n')
    raise nodes.SkipNode


def figures(app: Sphinx, doctree: nodes.document) -> None:
    """A picture among the outputs becomes a figure: its alt text is stored beside it, its caption comes next."""
    pictures = [bundle for bundle in doctree.findall(is_bundle) if part(bundle, "image/png") is not None]
    for number, bundle in enumerate(pictures, 1):
        image = next(bundle.findall(nodes.image))
        image["alt"] = part(bundle, "text/plain").astext()
        figure = nodes.figure("", image.deepcopy(), ids=[f"figure-{number}"])
        place = bundle.parent.index(bundle)
        following = bundle.parent[place + 1] if place + 1 < len(bundle.parent) else None
        if following is not None and (words := caption(following)):
            figure += nodes.caption("", "", *words)
            bundle.parent.remove(following)
        bundle.replace_self(figure)


def caption(node: nodes.Node) -> list[nodes.Node]:
    """The words of a caption, which is stored as one paragraph in italics; none if that is something else."""
    text = part(node, "text/markdown") if is_bundle(node) else None
    if text is None or len(text) != 1 or not isinstance(text[0], nodes.paragraph):
        return []
    if not isinstance(text[0][0], nodes.emphasis):
        return []
    return [word.deepcopy() for child in text[0].children
            for word in (child.children if isinstance(child, nodes.emphasis) else [child])]


def is_bundle(node: nodes.Node) -> bool:
    return isinstance(node, nodes.container) and node.get("nb_element") == "mime_bundle"


def part(bundle: nodes.Element, mime_type: str) -> nodes.Element | None:
    return next((child for child in bundle.children if child.get("mime_type") == mime_type), None)


def sliders(app: Sphinx, doctree: nodes.document) -> None:
    """The line that stands in place of a slider is a remark, and leads to the page where sliders can be moved."""
    for block in list(doctree.findall(nodes.literal_block)):
        if block.astext().startswith(SLIDER):
            line = nodes.paragraph("", f"{block.astext()} Sliders that can be moved on this site: ")
            line += [nodes.literal("", PLAYGROUND), nodes.Text(".")]
            block.replace_self(nodes.container("", line, classes=["slider-here"]))


def how_to_run(app: Sphinx, doctree: nodes.document) -> None:
    """Under a notebook's title: that this is a stored run, and how to have one's own."""
    name = app.env.docname.rpartition("/")[2]
    if NAME.fullmatch(name):
        line = nodes.paragraph("", "Stored outputs of one run. To change a line: ")
        line += [nodes.literal("", "make lab"), nodes.Text(", then "), nodes.literal("", f"{name}.ipynb"),
                 nodes.Text(".")]
        title = next(doctree.findall(nodes.title))
        title.parent.insert(title.parent.index(title) + 1, nodes.container("", line, classes=["stored-run"]))


def links_by_name(app: Sphinx, doctree: nodes.document) -> None:
    """`03_cola` in running text leads to that notebook, once there is one."""
    for literal in list(doctree.findall(nodes.literal)):
        page = f"notebooks/{literal.astext()}"
        if not NAME.fullmatch(literal.astext()) or page == app.env.docname or page not in app.env.found_docs:
            continue
        if isinstance(literal.parent, (nodes.reference, addnodes.pending_xref)):
            continue
        literal.replace_self(addnodes.pending_xref(
            "", literal.deepcopy(), refdomain="std", reftype="doc", reftarget=f"/{page}", refexplicit=True,
            refdoc=app.env.docname, refwarn=True))


def setup(app: Sphinx) -> dict[str, bool]:
    app.add_html_math_renderer("mathml", (inline_math, None), (block_math, None))
    for change in (figures, sliders, how_to_run, links_by_name):
        app.connect("doctree-read", change)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
