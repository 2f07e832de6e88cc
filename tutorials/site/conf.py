"""Sphinx's settings for the documentation. `build.py` beside this file runs it."""

from importlib.metadata import version as version_of

project = "xlingtox"
author = "The xlingtox authors"
copyright = "The xlingtox authors, MIT licence"
version = release = version_of("xlingtox")

extensions = [
    "myst_nb",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx.ext.viewcode",
]
exclude_patterns = ["README.md", "tutorials/site", "**/.ipynb_checkpoints"]

# Notebooks are shown with the outputs that they are stored with: `tutorials/execute.py` runs them.
nb_execution_mode = "off"
nb_mime_priority_overrides = [("html", "image/png", 5)]
myst_heading_anchors = 3
myst_enable_extensions = ["colon_fence", "dollarmath"]

# A page lists what its folder offers, in the order in which the source has it, each once.
autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_typehints_format = "short"
autodoc_preserve_defaults = True
autodoc_inherit_docstrings = False
napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_use_admonition_for_examples = False
napoleon_use_rtype = False
# An attribute is described once, in its class's list; several that belong together share a line.
napoleon_custom_sections = [("Attributes", "params_style")]
maximum_signature_line_length = 88
# The docstrings name things in single backticks, as in Markdown: they are code.
default_role = "code"
python_use_unqualified_type_names = True

html_theme = "furo"
html_title = "xlingtox"
html_static_path = ["static"]
html_css_files = ["site.css"]
html_show_sphinx = False
html_copy_source = False
html_theme_options = {
    "source_repository": "https://github.com/xlingtox/xlingtox/",
    "source_branch": "main",
    "top_of_page_buttons": [],
}
