"""Sphinx: furo, MyST, doctests, and a gallery whose pages are executed."""

import os
import sys
import warnings
from pathlib import Path

# one thread per process, and no network for the tokenizers: before torch is imported
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("DIFFUSERS_VERBOSITY", "error")
sys.path.insert(0, str(Path(__file__).parent / "_ext"))

import termwise

project = "Termwise"
author = "The Termwise authors"
copyright = "the Termwise authors"
version = release = termwise.__version__

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx.ext.viewcode",
    "sphinx.ext.doctest",
    "sphinx_gallery.gen_gallery",
    "docstrings",
    "mathml",
    "tables",
]
exclude_patterns = ["_build", "_ext", "examples", "tutorials", "Thumbs.db"]
default_role = "code"
html_theme = "furo"
html_title = f"Termwise {release}"
html_static_path = ["_static"]
html_css_files = ["termwise.css"]

myst_enable_extensions = ["colon_fence", "dollarmath"]
html_math_renderer = "mathml"  # mathematics without a script that a browser would fetch
myst_heading_anchors = 3

autodoc_member_order = "bysource"
autodoc_preserve_defaults = True
python_maximum_signature_line_length = 88  # longer ones have an argument on each line
autodoc_typehints = "none"  # the signature shows them; jaxtyping's strings are no references
autodoc_default_options = {"members": True, "show-inheritance": False}
napoleon_google_docstring = True
napoleon_use_ivar = True

doctest_test_doctest_blocks = ""  # docstrings are tested by pytest, in their modules
doctest_global_setup = "import torch\nimport termwise as tw\ntorch.manual_seed(0)"

sphinx_gallery_conf = {
    "examples_dirs": ["tutorials", "examples"],
    "gallery_dirs": ["learn", "gallery"],
    "filename_pattern": r"/(\d|plot)_",
    "within_subsection_order": "order.ByRoom",
    "image_scrapers": ["matplotlib", "figures.last_figure"],
    "ignore_repr_types": r"matplotlib\.",  # what a last line draws is shown, and not what it is called
    "abort_on_example_error": True,
    "download_all_examples": False,
    "show_memory": False,
    "remove_config_comments": True,
}

suppress_warnings = ["config.cache"]  # the configuration of the gallery cannot be kept between builds
warnings.filterwarnings("ignore", category=DeprecationWarning)
