"""The languages of the synthesiser that the Unicode CLDR has words for, and the accents of each."""

from upstream.errors import no_such, require

# The accents of a language, by espeak-ng's names. Languages with few speakers are left out, and those that espeak-ng
# can hardly read (Hebrew, Thai, Burmese, Uyghur); for Japanese it only reads kana.
_VARIED = {
    "en": ("en", "en-029", "en-GB-scotland", "en-GB-x-gbclan", "en-GB-x-gbcwmd", "en-GB-x-rp", "en-US", "en-US-nyc"),
    "es": ("es", "es-419"),
    "fr": ("fr", "fr-BE", "fr-CH"),
    "pt": ("pt", "pt-BR"),
    "ca": ("ca", "ca-ba", "ca-nw", "ca-va"),
    "vi": ("vi", "vi-VN-x-central", "vi-VN-x-south"),
    "zh": ("cmn",),
}
_SINGLE = """
    af am ar az be bg bn bs cs cy da de el et eu fa fi ga gu hi hr hu hy id is it ja ka kk kn ko ky lt lv mk ml mr ms nb
    ne nl pa pl ro ru si sk sl sq sr sv sw ta te tr tt uk ur uz yue
"""
ACCENTS: dict[str, tuple[str, ...]] = _VARIED | {name: (name,) for name in _SINGLE.split()}
ALL = "all"


def chosen(languages: list[str], without: list[str]) -> list[str]:
    """The languages of two options, in a fixed order.

    Raises:
        UserError: an unknown language, or none is left.
    """
    for option, names in (("--languages", [name for name in languages if name != ALL]), ("--without", without)):
        for name in names:
            if name not in ACCENTS:
                raise no_such(f"the language {name!r} of {option}", name, ACCENTS)
    left = [name for name in ACCENTS if (ALL in languages or name in languages) and name not in without]
    require(bool(left), "--without", without, "fewer languages than --languages")
    return left
