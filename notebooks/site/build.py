"""Build the course as a static site: the notebooks as committed, with their stored outputs, README and pages.

    python notebooks/site/build.py                  # `make book`: into notebooks/site/_build/html
    python notebooks/site/build.py --out FOLDER        # FOLDER/html

The sources are laid out afresh under FOLDER/source as they lie in the repository, so that links between them
hold. Nothing is executed, and nothing is fetched. A warning, such as a link that leads nowhere, fails the build.
"""

from __future__ import annotations

import argparse
import base64
import html
import json
import re
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import frames
import nbformat
from sphinx.cmd.build import build_main

from lowrank_teach.course.chapters.ledger import filterable
from lowrank_teach.course.chapters.playground import explorers
from lowrank_teach.course.contents import MINUTES, NOTEBOOKS
from lowrank_teach.integrations import audit_page
from lowrank_teach.integrations.audit import Audit
from lowrank_teach.reproduction import ledger
from lowrank_teach.reproduction.results import references_folder

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
BESIDE = ("GLOSSARY", "INSTRUCTOR")              # pages beside the notebooks, where they exist
PAGES = ("course", "own_model", "peft", "audit", "grid", "presets", "extend", "ledger", "how_we_compare",
         "benchmarks", "names", "data", "architecture")
FRONT = ROOT / "README.md"                       # is index.md on the site
SLIDER = "slider stands here"                     # in the output that is stored in the place of a slider
MADE = re.compile(r'^(\w+) = (?:\w+\["(\w+)"\]|(?:\w+\.)*(\w+))\(\)$', re.M)   # a picture on stored numbers
SHOWN = re.compile(r"explore\((\w+)\)")
CARD: dict[str, int] = {}                         # which figure stands for a notebook, where it is not the first
COURSE = re.compile(r"<!-- course -->\n(?:\|.*\n)+")   # the table of the notebooks in the README: cards on the site
LINK = re.compile(r"(\]\()(?!\w+:)([^)#\s]+)")   # a Markdown link or picture that stays in the repository


def audited(beside: Path) -> str:
    """Write the page of the stored audit beside the site's own, and return a link to it."""
    stored = json.loads((references_folder() / "audit.json").read_text(encoding="utf-8"))["adapters"]
    (beside / "_audit").mkdir(parents=True, exist_ok=True)
    (beside / "_audit" / "audit.html").write_text(audit_page.page([Audit.read(one) for one in stored]),
                                                  encoding="utf-8")
    return '<a href="../../../_audit/audit.html">The page that it wrote</a>'


# what a page of the repository has a mark for, and the site has itself
MADE_HERE = {"<!-- the table -->": lambda beside: filterable(ledger.ledger()).html, "<!-- the page -->": audited}


def main() -> int:
    arguments = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    arguments.add_argument("--out", type=Path, default=HERE / "_build")
    arguments.add_argument("--notebooks", type=Path, default=ROOT / "notebooks")
    chosen = arguments.parse_args()
    return build(chosen.notebooks, chosen.out.resolve())


def build(notebooks: Path, out: Path) -> int:
    """The site of these notebooks under out/html; Sphinx's exit status, 0 for no warning at all."""
    for old in ("source", "html", "doctrees", "jupyter_execute", "beside"):
        shutil.rmtree(out / old, ignore_errors=True)
    lay_out(notebooks, out / "source")
    status = build_main(["-b", "html", "-c", str(HERE), "-d", str(out / "doctrees"), "--fail-on-warning",
                         "--keep-going", "--quiet", str(out / "source"), str(out / "html")])
    if status == 0:
        shutil.copytree(out / "beside", out / "html", dirs_exist_ok=True)
        print(f"open {out / 'html' / 'index.html'}")
    return status


def lay_out(notebooks: Path, source: Path) -> None:
    """Write the sources of all pages."""
    pages = {path.stem: path for path in sorted(notebooks.glob("*.ipynb")) if path.stem in NOTEBOOKS}
    beside = [name for name in BESIDE if (notebooks / f"{name}.md").is_file()]
    others = [f"notebooks/site/pages/{name}" for name in PAGES] + ["CONTRIBUTING"]
    shown = cards(pages, source.parent / "beside" / "_cards")
    front = COURSE.sub(lambda _: shown, FRONT.read_text(encoding="utf-8"))
    write(source, "index.md", front + contents(list(pages), beside, others))
    for name in others:
        text = (ROOT / f"{name}.md").read_text(encoding="utf-8")
        for mark, made in MADE_HERE.items():
            text = text.replace(mark, made(source.parent / "beside")) if mark in text else text
        write(source, f"{name}.md", text)
    for name in beside:
        write(source, f"notebooks/{name}.md", (notebooks / f"{name}.md").read_text(encoding="utf-8"))
    (source / "notebooks").mkdir(exist_ok=True)
    for name, path in pages.items():
        notebook = nbformat.read(path, as_version=4)
        notebook.metadata.pop("jupytext", None)
        for cell in notebook.cells:
            if cell.cell_type == "markdown":
                cell.source = local(source, f"notebooks/{name}.ipynb", cell.source)
        with_sliders(notebook, source.parent / "beside" / "_frames")
        nbformat.write(notebook, source / "notebooks" / f"{name}.ipynb")


def with_sliders(notebook: nbformat.NotebookNode, folder: Path) -> None:
    """Put sliders that need no kernel where their place is held, if their picture shows the same numbers here."""
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    made = {name: kept or own for cell in code for name, kept, own in MADE.findall(cell.source)}
    known = explorers()
    for cell in code:
        shown = SHOWN.search(cell.source)
        kind = made.get(shown[1], "") if shown else ""
        for output in cell.outputs if kind in known else ():
            if SLIDER in output.get("data", {}).get("text/plain", ""):
                page = frames.page(known[kind](), folder / kind, f"../_frames/{kind}")
                output.data = nbformat.from_dict({"text/html": page})


def cards(pages: dict[str, Path], folder: Path) -> str:
    """Return the notebooks as cards, each with a picture of its own, and write the pictures into the folder."""
    minutes = json.loads((references_folder() / MINUTES).read_text(encoding="utf-8"))["minutes"]
    folder.mkdir(parents=True, exist_ok=True)
    found = []
    for name, question in NOTEBOOKS.items():
        if name in pages:
            drawn = ""
            if figure := picture(pages[name]):
                (folder / f"{name}.png").write_bytes(base64.b64decode(figure))
                drawn = f'<img src="_cards/{name}.png" alt="One of the figures of notebook {name}">'
            found.append(f'<a class="card" href="notebooks/{name}.html">{drawn}<b>{name}</b><span>'
                         f"{html.escape(question)}</span><small>{max(1, round(minutes.get(name, 1)))} min of "
                         "computing</small></a>")
    return '<div class="cards">\n' + "\n".join(found) + "\n</div>\n"


def picture(path: Path) -> str:
    """Return the figure that stands for a notebook, in base64; "" where none is stored."""
    notebook = nbformat.read(path, as_version=4)
    figures = [output.data["image/png"] for cell in notebook.cells for output in cell.get("outputs", ())
               if "image/png" in output.get("data", {})]
    return figures[min(CARD.get(path.stem, 0), len(figures) - 1)] if figures else ""


def contents(pages: list[str], beside: list[str], others: list[str]) -> str:
    """What the side bar lists, in the order of the course."""
    def tree(caption: str, names: list[str]) -> str:
        return "\n".join(["", "```{toctree}", ":hidden:", f":caption: {caption}", "", *names, "```", ""])

    ordered = [f"notebooks/{name}" for name in NOTEBOOKS if name in pages]
    return "".join([tree("The course", ordered), tree("Beside it", [f"notebooks/{name}" for name in beside]),
                    tree("The toolkit", others)])


def write(source: Path, name: str, text: str) -> None:
    (source / name).parent.mkdir(parents=True, exist_ok=True)
    (source / name).write_text(local(source, name, text), encoding="utf-8")


def local(source: Path, page: str, text: str) -> str:
    """The text of a page with what it links to laid out beside it: program files as pages, others as they are."""
    for target in set(targets(text)):
        inside = (ROOT / page).parent.joinpath(target).resolve()
        if not inside.is_file() or not inside.is_relative_to(ROOT) or inside.suffix in (".ipynb", ".md"):
            continue                      # pages of their own; and what is missing is for Sphinx to complain about
        copy = source / inside.relative_to(ROOT)
        copy.parent.mkdir(parents=True, exist_ok=True)
        if inside.suffix == ".py":
            listing = inside.read_text(encoding="utf-8")
            copy.with_name(f"{copy.name}.md").write_text(
                f"---\norphan: true\n---\n# `{inside.relative_to(ROOT).as_posix()}`\n\n"
                f"~~~~python\n{listing}~~~~\n", encoding="utf-8")
        else:
            shutil.copyfile(inside, copy)

    def on_the_site(found: re.Match[str]) -> str:
        if (ROOT / page).parent.joinpath(found[2]).resolve() == FRONT:
            return found[0].replace("README.md", "index.md")
        return found[0] + ".md" if found[2].endswith(".py") else found[0]

    return LINK.sub(on_the_site, text)


def targets(text: str) -> Iterator[str]:
    return (found[2] for found in LINK.finditer(text))


if __name__ == "__main__":
    sys.exit(main())
