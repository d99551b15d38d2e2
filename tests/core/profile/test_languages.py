from __future__ import annotations

import string
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vt_core.errors import OptionError
from vt_core.profile.languages import GROUPS, KNOWN, LANGUAGES, Range, code_points, merged

SAMPLES = {
    "ar": "ابتثجحخدذرزسشصضطظعغفقكلمنهويءآأؤإئةى ًٌٍَُِّْ ٠١٢٣٤٥٦٧٨٩ ، ؛ ؟ ﷺ",
    "de": "Zwölf Boxkämpfer jagen Viktor quer über den großen Sylter Deich: „STRAẞE“ – 5 €",
    "el": "Ξεσκεπάζω τὴν ψυχοφθόρα βδελυγμία; ΆΈΉΊΌΎΏ ϊϋΐΰ «ναι»",
    "en": "The quick brown fox jumps over the lazy dog — café, naïve: “it’s £5”…",
    "es": "El pingüino Wenceslao hizo kilómetros bajo exhaustiva lluvia: ¿ñandú? ¡Ñu! 1.ª",
    "fr": "Portez ce vieux whisky au juge blond qui fume\u202f: « Œuvre, cœur, L'HAŸ-LES-ROSES, ça »",
    "he": "עטלף אבק נס דרך מזגן שהתפוצץ כי חם, ךםןףץ שָׁלוֹם ״כן״ ׳",
    "hi": "ऋषियों को सताने वाले दुष्ट राक्षसों के राजा रावण का सर्वनाश ०१२३४५६७८९ । क़ ॐ",
    "it": "Quel vituperabile xenofobo zelante assaggia il whisky ed esclama: «Alleluja! È così, perché più?»",
    "ja": "いろはにほへと ちりぬるを ワカヨタレソ ツネナラム 日本語の文章、「々」〆ーヴ。１２３ＡＢＣ！？",
    "ko": "키스의 고유조건은 입술끼리 만나야 하고 특별한 기술은 필요치 않다. ㅋㅋ 「한글」 힣",
    "nl": "Pa's wijze lynx bezag vroom het fikse aquaduct: ĳs, Ĳssel, coördinatie, reële",
    "pl": "Zażółć gęślą jaźń. PCHNĄĆ W TĘ ŁÓDŹ JEŻA „LUB OŚM” SKRZYŃ FIG",
    "pt": "À noite, vovô Kowalsky vê o ímã cair no pé do pinguim queixoso: coração, 2º",
    "ru": "Съешь же ещё этих мягких французских булок, да выпей чаю — ЁЖ «№ 1» за́мок",
    "th": "เป็นมนุษย์สุดประเสริฐเลิศคุณค่า กว่าบรรดาฝูงสัตว์เดรัจฉาน ฿๑๒๓ ๆ ฯ",
    "uk": "Жебракують філософи при ґанку церкви в Гадячі, ще й шатро їхнє п'яне знаємо: «ЄҐІЇ» ʼ",
    "vi": "Do bạch kim rất quý nên sẽ dùng để lắp vô xương: Đường, ưỡn, ẵm, ỹ, Ặ, Ỵ, a\u0303o\u0309",
    "zh": "天地玄黃，宇宙洪荒。「日月盈昃」《辰宿列張》（１２３）①：㐀𠀀、……——！？",
    "code": "def f(x: int) -> str:\n\treturn f'{x!r}' # │├── ↑",
    "math": "∀ε>0 ∃δ: |α−β| ≤ ½·π², ∑ₙ xⁿ ≈ √2 × 10⁻³ ÷ ℝ → ∞ ± 𝒜 ⟨⟩",
    "emoji": "😀👍🏽❤️👨‍👩‍👧🇮🇹☀⭐🫠⏰▶️1️⃣🏴\U000e0067\U000e007f",
}

# How many characters each name allows, those of every language included. Moving any end of a range moves one.
SIZES = dict(
    ar=1405,
    code=251,
    de=321,
    el=604,
    emoji=4075,
    en=320,
    es=320,
    fr=323,
    he=357,
    hi=366,
    it=320,
    ja=71558,
    ko=12164,
    math=2704,
    nl=322,
    pl=336,
    pt=320,
    ru=271,
    th=292,
    uk=280,
    vi=430,
    zh=71373,
)

EVERYWHERE = string.digits + string.punctuation + string.whitespace + "\u00a0\u2009\u202f\u3000\u2028"


def characters(*names: str) -> set[int]:
    return {point for low, high in code_points(names) for point in range(low, high + 1)}


@pytest.mark.parametrize("name", KNOWN)
def test_language_contains_its_letters_and_common_characters(name: str) -> None:
    latin = string.ascii_letters if name in ("math", "emoji") else ""
    allowed = characters(name) | set(map(ord, latin))
    missing = {character for character in SAMPLES[name] + EVERYWHERE if ord(character) not in allowed}
    assert not missing


@pytest.mark.parametrize("name", KNOWN)
def test_size_of_a_language(name: str) -> None:
    assert len(characters(name)) == SIZES[name]


@pytest.mark.parametrize("name", KNOWN)
def test_size_changes_if_any_range_end_moves(name: str) -> None:
    ranges = code_points([name])
    for index, (low, high) in enumerate(ranges):
        for moved in ((low - 1, high), (low + 1, high), (low, high - 1), (low, high + 1)):
            changed = [*ranges[:index], moved, *ranges[index + 1 :]]
            assert sum(high - low + 1 for low, high in changed) != SIZES[name]


@pytest.mark.parametrize(
    ("name", "foreign"),
    [
        ("en", "яαあ中ا한ł"),
        ("zh", "aあア한я"),
        ("ja", "aя한"),
        ("ko", "a中あ"),
        ("ru", "aіїє中"),
        ("uk", "aέ中"),
        ("it", "łžя"),
        ("he", "ا"),
        ("ar", "א"),
        ("math", "aя中"),
        ("code", "éя中"),
    ],
)
def test_language_excludes_other_scripts(name: str, foreign: str) -> None:
    assert not characters(name) & set(map(ord, foreign))


def test_without_language_only_common_characters_are_allowed() -> None:
    allowed = {point for point in characters() if point < 0x80}
    assert allowed == set(map(ord, string.digits + string.punctuation + string.whitespace))


def test_languages_are_combined() -> None:
    assert characters("zh", "en") == characters("zh") | characters("en")


def test_known_languages_and_groups() -> None:
    wanted = "ar de el en es fr he hi it ja ko nl pl pt ru th uk vi zh"
    assert sorted(LANGUAGES) == wanted.split()
    assert sorted(GROUPS) == ["code", "emoji", "math"]


def test_unknown_language_error_lists_the_known_ones() -> None:
    with pytest.raises(
        OptionError, match=r"Language 'klingon' is not known; known are ar, de, .*, zh, and code"
    ):
        code_points(["en", "klingon"])


ranges = st.tuples(st.integers(0, 60), st.integers(0, 8)).map(lambda pair: (pair[0], sum(pair)))


@given(st.lists(ranges, max_size=8))
def test_merged_ranges_keep_their_points_and_do_not_touch(parts: list[Range]) -> None:
    result = merged(parts)
    points = [point for low, high in result for point in range(low, high + 1)]
    assert points == sorted({point for low, high in parts for point in range(low, high + 1)})
    assert all(b[0] > a[1] + 1 for a, b in pairwise(result))
