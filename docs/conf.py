"""How Sphinx builds this folder: ``scripts/docs``."""

from __future__ import annotations

import sys
from pathlib import Path

from hugepool import __version__

sys.path.insert(0, str(Path(__file__).parent))  # for generated.py

project = "hugepool"
author = "the hugepool developers"
project_copyright = author
version = release = __version__

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx_click",
    "generated",
]

html_theme = "furo"
html_title = f"hugepool {__version__}"
html_copy_source = False
html_show_sphinx = False

# A link to a page, a heading or a name that is not there fails the build.
nitpicky = True
nitpick_ignore_regex = [
    # What signatures take from other projects: the site is built without the network.
    (
        r"py:.*",
        r"(numpy|np|npt|scipy|msgspec|asyncio|collections|concurrent|os|pathlib|contextlib|enum)(\..*)?",
    ),
    # Prose in the type column of NumPy-style docstrings.
    (r"py:class", r"[a-z0-9 _-]+|.*[ \[\]|,'\"].*"),
    # The project's own that users meet by value and never name.
    (
        r"py:class",
        r"hugepool\.(aio\.Connecting|array\.SharedObject|plan_record\.PlanFacts|crew_step\.Planned)"
        r"|hugepool_common\.spec\.(Member|Part|Segment)|(hugepool(\.\w+)*\.)?_\w+",
    ),
    (r"py:mod", r"hugepool\.kernels|hugepool_common\.checksum"),
]

myst_enable_extensions = ["colon_fence", "deflist"]
myst_heading_anchors = 3
# Pages are read in the repository too, where `../README.md` and folders are links.
myst_links_external_new_tab = False

autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_class_signature = "mixed"
smartquotes = False  # `--fill "1"` is to be copied as it is

napoleon_google_docstring = False
napoleon_use_rtype = False
python_use_unqualified_type_names = True
