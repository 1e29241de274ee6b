"""The gallery shows a figure that a script ends a block with, `report.plot()`, as it shows those of pyplot.

sphinx-gallery keeps the value of a block's last line as `___`; a matplotlib `Figure` that pyplot does not know is drawn here.
"""

from __future__ import annotations

from typing import Any

from matplotlib.figure import Figure
from sphinx_gallery.scrapers import figure_rst

__all__ = ["last_figure"]


def last_figure(block: Any, block_vars: dict[str, Any], gallery_conf: dict[str, Any]) -> str:
    """An image of the last value where it is a figure of its own, as reStructuredText."""
    found = block_vars["example_globals"].get("___")
    if not isinstance(found, Figure) or found.canvas.manager is not None or hasattr(found, "_in_gallery"):
        return ""
    found._in_gallery = True  # the value stays until another block ends with one
    path = next(block_vars["image_path_iterator"])
    found.savefig(path, dpi=100)
    return figure_rst([path], gallery_conf["src_dir"])
