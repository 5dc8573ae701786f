"""The documentation site: `make docs` writes it to build/site. Static, with nothing from other hosts."""

import sys
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parents[1]), str(Path(__file__).parent / "_extensions")]

import pliant  # noqa: E402

project = "Pliant"
author = "The Pliant developers"
copyright = "The Pliant developers"
version = release = pliant.__version__

suppress_warnings = ["myst.header"]  # pages made by commands begin their tables with headings of level three

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx_copybutton",
    "mathml",
    "reference_pages",
]
exclude_patterns = ["_build", "_extensions"]
html_theme = "furo"
html_title = "Pliant"
html_show_sphinx = False
html_copy_source = False
html_show_search_summary = False  # it would fetch pages, which browsers refuse to do from a folder
html_math_renderer = "mathml"

myst_enable_extensions = ["dollarmath", "attrs_inline"]
myst_heading_anchors = 4
myst_dmath_allow_labels = False
myst_dmath_double_inline = True

autodoc_typehints = "signature"
autodoc_member_order = "bysource"
autodoc_preserve_defaults = True
napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_use_ivar = True
napoleon_custom_sections = [("State", "notes_style"), ("Edits", "notes_style"), ("Deviations", "notes_style")]
napoleon_custom_sections += [("Formula", "notes_style"), ("Source", "notes_style")]

copybutton_prompt_text = r">>> |\.\.\. |\$ "
copybutton_prompt_is_regexp = True
