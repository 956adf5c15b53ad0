"""Sphinx's configuration of the course as a static site; `notebooks/site/build.py` lays the sources out and calls it.

Nothing that a page needs comes from a network: mathematics is MathML, made here; its font, the theme's style
sheets and the search lie beside the pages. Notebooks are not executed: their stored outputs are shown.
"""

import importlib.util
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE))

project = "lowrank_teach"
language = "en"
smartquotes = False                    # quotation marks stay as they were typed: much of the text is code
html_title = "lowrank_teach: the course"
html_short_title = "the course"

extensions = ["myst_nb", "course_pages"]
nb_execution_mode = "off"
nb_merge_streams = True                # what a cell printed is one block
nb_render_markdown_format = "myst"     # captions and sources as JupyterLab shows them, with their mathematics
nb_ipywidgets_js: dict = {}            # no widget state is stored, so nothing would be loaded; and nothing may be
myst_enable_extensions = ["dollarmath", "amsmath"]
myst_dmath_double_inline = True
myst_heading_anchors = 3               # links such as GLOSSARY.md#lora
myst_update_mathjax = False
html_math_renderer = "mathml"          # course_pages.py

html_theme = "furo"
html_theme_options = {"top_of_page_buttons": []}
pygments_style = "a11y-light"
pygments_dark_style = "a11y-dark"
templates_path = [str(HERE / "_templates")]
# a font with the shapes and measures that mathematics needs; it comes with ziamath, of which nothing else is used
FONT = Path(importlib.util.find_spec("ziamath").origin).parent / "fonts" / "STIXTwoMath-Regular.ttf"
html_static_path = [str(HERE / "_static"), str(FONT)]
html_css_files = ["book.css"]
html_js_files = ["frames.js"]
html_copy_source = False
html_use_index = False
html_show_copyright = False
html_show_search_summary = False       # a page that was opened as a file may not read another one
