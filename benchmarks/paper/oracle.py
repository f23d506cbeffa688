"""NEXT with the truth as mask: the bound of what a choice of patches could give."""

from dataclasses import replace
from typing import Any

import numpy as np
import torch.nn.functional as F
from torch import Tensor

from nextreid.data import ReIDDataset, Sample
from nextreid.models import ReIDModel, create_model
from nextreid.synthetic import PARTS

MODALITY = "parts"
SHOWS = 0.25  # share of a patch that must be covered
_PERSON = [PARTS.index(part) for part in PARTS if part not in ("background", "occluder")]


def with_part_maps(dataset: ReIDDataset, evidence: str = "all") -> ReIDDataset:
    """Add one more modality: white where the person is, or the part that holds the evidence.

    It is flipped and cropped as the others, and has no captions.
    """
    part = evidence.partition(":")[0]
    wanted = [PARTS.index(part)] if part in PARTS else _PERSON

    def add(sample: Sample) -> Sample:
        assert sample.truth is not None
        white = np.isin(sample.truth["parts"], wanted).astype(np.uint8) * 255
        captions = (*sample.captions, ()) if sample.captions else ()
        return replace(sample, images=(*sample.images, np.repeat(white[..., None], 3, axis=2)), captions=captions)

    splits: dict[str, Any] = {name: tuple(map(add, samples)) for name, samples in dataset.splits().items()}
    return replace(dataset, modalities=(*dataset.modalities, MODALITY), **splits)


class Oracle(ReIDModel):
    """`next_tiny` whose experts sample what the last modality shows.

    Args:
        evidence: See `PersonsConfig`; a part in one modality is sampled in that modality alone.
        **arguments: Of ``create_model("next_tiny")``.
    """

    def __init__(self, evidence: str = "all", **arguments: Any) -> None:
        inner = create_model("next_tiny", text_tower=None, **arguments)
        super().__init__((*inner.modalities, MODALITY))
        self.image_tower, self.head = inner.image_tower, inner.get_submodule("head")
        self.img_size, self.embed_dim, self.num_features = inner.img_size, inner.embed_dim, inner.num_features
        self.embeddings = {"fused": inner.num_features}
        self.pretrained_cfg = inner.pretrained_cfg.replace(architecture="oracle", modalities=self.modalities)
        part, _, only = evidence.partition(":")
        self.sampled = [part == "all" or modality == only for modality in inner.modalities]
        self.reset_classifier(0)

    def encode_images(
        self, images: Tensor, present: Tensor | None = None, camid: Tensor | None = None
    ) -> dict[str, Tensor]:
        """Tokens of all modalities but the last, and from that one the patches to sample ``shows (B, M, N)``."""
        cls, tokens = self.image_tower(images[:, :-1], None, camid)
        white = images[:, -1:, 0] / 2 + 0.5  # (B, 1, H, W); mean and std are 0.5
        shows = (F.avg_pool2d(white, self.image_tower.patch_size).flatten(2) >= SHOWS).to(tokens.dtype)  # (B, 1, N)
        sampled = shows.new_tensor(self.sampled)[None, :, None]
        return {"cls": cls, "tokens": tokens, "shows": shows * sampled}

    def forward_tokens(
        self, encoded: dict[str, Tensor], text: Tensor | None = None, present: Tensor | None = None
    ) -> dict[str, Tensor]:
        """Run the head with the given masks."""
        return self.head(encoded["cls"], encoded["tokens"], return_parts=True, mask=encoded["shows"])

    def pool(self, features: dict[str, Tensor]) -> Tensor:
        """The embedding, as NEXT's."""
        return features["groups"].flatten(1)
