"""A local page of runs, rankings, galleries and datasets; needs the extra ``browse``."""

from .library import Library, sort_sources
from .ranks import RankOptions
from .server import browse, make_browser

__all__ = ["Library", "RankOptions", "browse", "make_browser", "sort_sources"]
