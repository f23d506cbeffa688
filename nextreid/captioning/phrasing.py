"""The phrasings of the caption grammar: which of several equivalent phrases a sentence uses."""

import hashlib
from dataclasses import dataclass, field, fields


def _choice(*correct: str, slips: tuple[str, ...] = ()) -> str:
    """Declare correct phrasings, the default first, and slips of the published captions."""
    metadata = {"correct": correct, "allowed": correct + slips}
    return field(default=correct[0], metadata=metadata)


@dataclass(frozen=True, slots=True)
class Phrasing:
    """One choice for each phrase that has several variants.

    The defaults are the commonest variants in the published captions that is correct English.

    Attributes:
        article: ``"grammar"``: "An adult male"; ``"a"``: "A adult male", a slip of the published captions.
        glasses: ``"clause"``: "and he is wearing glasses"; ``"short"``: "and wearing glasses".
        nothing: How empty hands are described. ``"anything"``: "is not carrying anything"; ``"nothing"``: "is carrying
            nothing"; published oddities: ``"none"``: "is carrying none", ``"a none"``; ``"each"``: "not carrying a
            handbag, not carrying a backpack, and not dragging a suitcase"; ``"hands"``: "is not holding anything".
        action: ``"article"``: "carrying a handbag"; published oddities: ``"bare"``: "carrying handbag";
            ``"reversed"``: "holding a phone and carrying a backpack"; ``"reversed bare"``: both.
        garment: ``"article"``: "with a black skirt"; ``"bare"``: "with black skirt", a slip.
        clarity: ``"appears"``: "The image appears blurry"; ``"is"``: "The image is blurry".
        seen: ``"viewed"``: a vehicle "viewed from the front"; ``"seen"``: "seen from the front".
        grille: ``"complemented"``: "…, complemented by a … grille"; ``"and"``: "… and a … grille".
        definite: ``"plain"``: "Spoiler is present"; ``"the"``: "The spoiler is present".
        roof: ``"separate"``: a sentence for it; published run-on, where no grille is mentioned: ``"sitting"``:
            "taillights, complemented by a flat roof sitting above … tires", ``"above"``: "a flat roof
            above … tires", ``"sits"``: "a flat roof sits above … tires".
        values: ``"clean"``: what is unknown, bracketed or repeated is dropped; ``"verbatim"``: all values unchanged, to
            reproduce a defective caption.

    Raises:
        ValueError: If a choice is unknown.
    """

    article: str = _choice("grammar", slips=("a",))
    glasses: str = _choice("clause", "short")
    nothing: str = _choice("anything", "nothing", slips=("none", "a none", "each", "hands"))
    action: str = _choice("article", slips=("bare", "reversed", "reversed bare"))
    garment: str = _choice("article", slips=("bare",))
    clarity: str = _choice("appears", "is")
    seen: str = _choice("viewed", "seen")
    grille: str = _choice("complemented", "and")
    definite: str = _choice("plain", "the")
    roof: str = _choice("separate", slips=("sitting", "above", "sits"))
    values: str = _choice("clean", slips=("verbatim",))

    def __post_init__(self) -> None:
        for entry in fields(self):
            if (value := getattr(self, entry.name)) not in (allowed := entry.metadata["allowed"]):
                raise ValueError(f"phrasing {entry.name} must be one of {allowed}, got {value!r}")


def phrasing_of(key: str) -> Phrasing:
    """Draw a phrasing of correct English that belongs to `key`, such as ``f"{seed}/{epoch}/{sample.key}"``.

    The same key gives the same phrasing on every machine; over many keys all correct phrasings are equally frequent.
    """
    digest = hashlib.blake2b(key.encode(), digest_size=16).digest()
    correct = {entry.name: entry.metadata["correct"] for entry in fields(Phrasing)}
    return Phrasing(**{name: texts[digest[i] % len(texts)] for i, (name, texts) in enumerate(correct.items())})
