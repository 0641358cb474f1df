"""How Sphinx builds the pages: `python -m sphinx -W --keep-going docs out/docs`."""

from importlib import metadata


project = "jaxsparse"
release = metadata.version("jaxsparse")
html_title = f"jaxsparse {release}"
html_theme = "furo"
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]

# Docstrings have names between single backticks: linked where they are documented.
default_role = "py:obj"
autodoc_default_options = {"members": True}
autodoc_member_order = "bysource"
autodoc_preserve_defaults = True
autodoc_typehints = "none"  # docstrings say shapes and dtypes, which types do not
napoleon_numpy_docstring = False
napoleon_custom_sections = [("Attributes", "params_style")]
napoleon_attr_annotations = False
napoleon_use_rtype = False
myst_heading_anchors = 2
