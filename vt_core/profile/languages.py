"""The characters of languages and of kinds of text, as ranges of code points.

A range is `"41-5A"` (hexadecimal, both ends included) or one code point. A language has its own script only:
for Latin letters in Chinese texts, use `en` together with `zh`. `ALWAYS` belongs to every language.
"""

from __future__ import annotations

from collections.abc import Iterable

from vt_core.errors import OptionError

#: First and last code point, both included.
Range = tuple[int, int]

ALWAYS = (
    "09-0D", "20-40", "5B-60", "7B-7E",  # ASCII white space, digits, punctuation
    "85", "A0", "1680", "2000-200A", "2028-2029", "202F", "205F", "3000",  # Unicode white space
)  # fmt: skip

_LETTERS = ("41-5A", "61-7A")
_LATIN_1 = (*_LETTERS, "AA", "BA", "C0-D6", "D8-F6", "F8-FF")
_SIGNS = (
    "A1-A9", "AB-B9", "BB-BF", "D7", "F7",  # Latin-1 punctuation and symbols
    "2010-2027", "2030-205E", "20A0-20C0", "2116", "2122",  # dashes, quotes, currencies, numero, trade mark
)  # fmt: skip
_EAST_ASIAN_SIGNS = ("3001-303F", "FE30-FE4F", "FF01-FFEE")
_IDEOGRAPHS = ("3400-4DBF", "4E00-9FFF", "F900-FAFF", "20000-2A6DF")

#: Languages by ISO 639-1 code.
LANGUAGES: dict[str, tuple[str, ...]] = {
    "ar": ("600-6FF", "750-77F", "8A0-8FF", "FB50-FDCF", "FDF0-FDFF", "FE70-FEFC", "200C-200F", *_SIGNS),
    "de": (*_LATIN_1, "1E9E", *_SIGNS),
    "el": ("370-3FF", "1F00-1FFF", *_SIGNS),
    "en": (*_LATIN_1, *_SIGNS),
    "es": (*_LATIN_1, *_SIGNS),
    "fr": (*_LATIN_1, "152-153", "178", *_SIGNS),
    "he": ("591-5F4", "FB1D-FB4F", "200E-200F", *_SIGNS),
    "hi": ("900-97F", "A8E0-A8FF", "200C-200D", *_SIGNS),
    "it": (*_LATIN_1, *_SIGNS),
    "ja": ("3041-3096", "3099-30FF", "31F0-31FF", *_IDEOGRAPHS, *_EAST_ASIAN_SIGNS, *_SIGNS),
    "ko": ("1100-11FF", "3131-318E", "A960-A97C", "AC00-D7A3", "D7B0-D7FB", *_EAST_ASIAN_SIGNS, *_SIGNS),
    "nl": (*_LATIN_1, "132-133", *_SIGNS),
    "pl": (*_LATIN_1, "104-107", "118-119", "141-144", "15A-15B", "179-17C", *_SIGNS),
    "pt": (*_LATIN_1, *_SIGNS),
    "ru": ("401", "410-44F", "451", "301", *_SIGNS),
    "th": ("E01-E3A", "E3F-E5B", "200B", *_SIGNS),
    "uk": ("401", "404", "406-407", "410-44F", "451", "454", "456-457", "490-491", "2BC", "301", *_SIGNS),
    "vi": (
        *_LATIN_1, "102-103", "110-111", "128-129", "168-169", "1A0-1A1", "1AF-1B0",
        "300-303", "306", "309", "31B", "323", "1EA0-1EF9", *_SIGNS,
    ),
    "zh": (*_IDEOGRAPHS, "2460-2473", *_EAST_ASIAN_SIGNS, *_SIGNS),
}  # fmt: skip

#: Kinds of text that can be combined with any language.
GROUPS: dict[str, tuple[str, ...]] = {
    "code": (*_LETTERS, "2190-2193", "2500-257F"),
    "emoji": (
        "A9", "AE", "200D", "203C", "2049", "20E3", "2122", "2139", "2194-21AA", "2300-23FF", "24C2",
        "25A0-27BF", "2934-2935", "2B00-2BFF", "3030", "303D", "3297", "3299", "FE0E-FE0F", "1F000-1FAFF",
        "E0020-E007F",
    ),
    "math": (
        "AC", "B0-B3", "B5", "B7", "B9", "BC-BE", "D7", "F7", "370-3FF", "2010-2027", "2032-2037", "2044",
        "2061-2064", "2070-209C", "2100-214F", "2190-23FF", "25A0-25FF", "27C0-27FF", "2900-2AFF",
        "1D400-1D7FF",
    ),
}  # fmt: skip

KNOWN = {**LANGUAGES, **GROUPS}


def code_points(names: Iterable[str]) -> list[Range]:
    """The code points of all these languages and groups and of `ALWAYS`, as sorted ranges that do not touch.

    Raises OptionError for an unknown name.
    """
    texts = list(ALWAYS)
    for name in names:
        if name not in KNOWN:
            raise OptionError(
                f"Language '{name}' is not known; known are {', '.join(LANGUAGES)}, and {', '.join(GROUPS)}."
            )
        texts.extend(KNOWN[name])
    return merged(_parse(text) for text in texts)


def merged(ranges: Iterable[Range]) -> list[Range]:
    """The same code points as sorted ranges that neither overlap nor touch."""
    result: list[Range] = []
    for low, high in sorted(ranges):
        if result and low <= result[-1][1] + 1:
            result[-1] = (result[-1][0], max(high, result[-1][1]))
        else:
            result.append((low, high))
    return result


def _parse(text: str) -> Range:
    low, _, high = text.partition("-")
    return int(low, 16), int(high or low, 16)
