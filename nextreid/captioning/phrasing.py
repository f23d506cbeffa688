"""The wordings of the caption grammar: which of several equal phrases a sentence takes."""

import hashlib
from dataclasses import dataclass, fields

_CHOICES: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    # name: (correct wordings, the default first; slips and oddities of the published captions)
    "article": (("grammar",), ("a",)),
    "glasses": (("clause", "short"), ()),
    "nothing": (("anything", "nothing"), ("none", "a none", "each", "hands")),
    "action": (("article",), ("bare", "reversed", "reversed bare")),
    "garment": (("article",), ("bare",)),
    "clarity": (("appears", "is"), ()),
    "seen": (("viewed", "seen"), ()),
    "grille": (("complemented", "and"), ()),
    "definite": (("plain", "the"), ()),
    "roof": (("own",), ("sitting", "above", "sits")),
    "values": (("clean",), ("verbatim",)),
}


@dataclass(frozen=True, slots=True)
class Wording:
    """One choice for each phrase that has several wordings.

    The defaults are the commonest wording of the published captions that is correct English.

    Attributes:
        article: ``"grammar"``: "An adult male"; ``"a"``: "A adult male", a slip of the published captions.
        glasses: ``"clause"``: "and he is wearing glasses"; ``"short"``: "and wearing glasses".
        nothing: How empty hands are told. ``"anything"``: "is not carrying anything"; ``"nothing"``: "is carrying
            nothing"; published oddities: ``"none"``: "is carrying none", ``"a none"``; ``"each"``: "not carrying a
            handbag, not carrying a backpack, and not dragging a suitcase"; ``"hands"``: "is not holding anything".
        action: ``"article"``: "carrying a handbag"; published oddities: ``"bare"``: "carrying handbag";
            ``"reversed"``: "holding a phone and carrying a backpack"; ``"reversed bare"``: both.
        garment: ``"article"``: "with a black skirt"; ``"bare"``: "with black skirt", a slip.
        clarity: ``"appears"``: "The image appears blurry"; ``"is"``: "The image is blurry".
        seen: ``"viewed"``: a vehicle "viewed from the front"; ``"seen"``: "seen from the front".
        grille: ``"complemented"``: "…, complemented by a … grille"; ``"and"``: "… and a … grille".
        definite: ``"plain"``: "Spoiler is present"; ``"the"``: "The spoiler is present".
        roof: ``"own"``: a sentence of its own; published run-on, where no grille is told: ``"sitting"``:
            "taillights, complemented by a flat roof sitting above … tires", ``"above"``: "a flat roof
            above … tires", ``"sits"``: "a flat roof sits above … tires".
        values: ``"clean"``: what is unknown, bracketed or told twice is dropped; ``"verbatim"``: all values as they
            are, to write a damaged caption again.

    Raises:
        ValueError: If a choice is unknown.
    """

    article: str = "grammar"
    glasses: str = "clause"
    nothing: str = "anything"
    action: str = "article"
    garment: str = "article"
    clarity: str = "appears"
    seen: str = "viewed"
    grille: str = "complemented"
    definite: str = "plain"
    roof: str = "own"
    values: str = "clean"

    def __post_init__(self) -> None:
        for name, (correct, slips) in _CHOICES.items():
            if getattr(self, name) not in correct + slips:
                raise ValueError(f"wording {name} must be one of {correct + slips}, got {getattr(self, name)!r}")


def wording_of(key: str) -> Wording:
    """Draw a wording of correct English that belongs to `key`, such as ``f"{seed}/{epoch}/{sample.key}"``.

    The same key gives the same wording on every machine; over many keys all correct wordings are equally frequent.
    """
    digest = hashlib.blake2b(key.encode(), digest_size=16).digest()
    chosen = {f.name: _CHOICES[f.name][0] for f in fields(Wording)}
    return Wording(**{name: correct[digest[i] % len(correct)] for i, (name, correct) in enumerate(chosen.items())})
