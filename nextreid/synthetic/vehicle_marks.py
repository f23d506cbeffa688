"""Characters of licence plates and emblems of makes, as rows of ones and zeros."""

from collections.abc import Mapping

_GLYPHS = (
    "A25755 B65656 C34443 D65556 E74647 F74644 G34553 H55755 J11152 K55655 L44447 M57755 N65555 P65644 Q25563 R65655 "
    "S34216 T72222 U55557 V55552 W55775 X55255 Y55222 Z71247 075557 126227 271747 371717 455711 574717 674757 771122 "
    "875757 975717"
)
GLYPHS: Mapping[str, tuple[str, ...]] = {
    glyph[0]: tuple(f"{int(row):03b}" for row in glyph[1:]) for glyph in _GLYPHS.split()
}
"""Five rows of three cells for each character."""

BADGES: Mapping[str, tuple[str, ...]] = {
    make: tuple(rows.split())
    for make, rows in {
        "Volkswagen": "01110 10101 11011 10101 01110",
        "Ford": "00000 01110 11111 01110 00000",
        "Buick": "00100 01010 10101 01010 00100",
        "Honda": "10001 10001 11111 10001 10001",
        "Geely": "11111 10101 11111 10101 01110",
        "Volvo": "00011 01110 10001 10001 01110",
        "Mazda": "10001 11011 10101 01110 00000",
        "Toyota": "01110 11111 10101 10101 01110",
        "Audi": "00000 11111 10101 11111 00000",
        "Hyundai": "01001 01001 01110 10010 10010",
        "Nissan": "01110 10001 11111 10001 01110",
        "BMW": "01110 11001 11111 10011 01110",
    }.items()
}
"""Five rows of five cells for each make; invented, but as different as the makers' own."""
