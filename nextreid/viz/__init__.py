"""Images and reports for people: rank lists, masks, HTML."""

from .drawing import check_image_path, save_image
from .hits import hits_image
from .masks import mask_image
from .rank_list import rank_list_image
from .report import write_report
from .table import Table

__all__ = ["Table", "check_image_path", "hits_image", "mask_image", "rank_list_image", "save_image", "write_report"]
