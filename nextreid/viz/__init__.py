"""Pictures and reports for people: rank lists, masks, HTML."""

from .masks import mask_picture
from .picture import save_picture
from .rank_list import rank_list_picture
from .report import Table, write_report

__all__ = ["Table", "mask_picture", "rank_list_picture", "save_picture", "write_report"]
