"""A gallery over HTTP, for one machine; needs the extra ``serve``."""

from .server import Limits, make_app, serve

__all__ = ["Limits", "make_app", "serve"]
