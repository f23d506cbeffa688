"""Answers to caption: the sentence grammar of the captions room, for the modalities of this set."""

from collections.abc import Mapping

from ..captioning import compose

MODALITIES = ("rgb", "nir", "tir")


def compose_person(answers: Mapping[str, str], modality: str) -> tuple[str, ...]:
    """Write the caption of one image as up to five sentences.

    Colours are named in RGB only; TIR has neither time nor light. Empty or unknown answers leave their slot out,
    and a sentence whose slots are all empty is left out (`nextreid.captioning.compose`).

    Args:
        answers: Value by field of the person schema, such as ``{"gender": "male", "view": "side"}``.
        modality: ``"rgb"``, ``"nir"`` or ``"tir"``.

    Returns:
        The sentences in order; joined by a space they are the caption.

    Raises:
        ValueError: If it is another modality.
    """
    if modality not in MODALITIES:
        raise ValueError(f"modality must be 'rgb', 'nir' or 'tir', got {modality!r}")
    return compose(answers, "person", modality)
