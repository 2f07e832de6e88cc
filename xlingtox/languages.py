"""Languages: their codes, in the order in which every table and figure lists them, and how data sets spell them."""

import re
from collections.abc import Collection, Iterable
from types import MappingProxyType

from xlingtox.checking import checked

# Code, English name, and how else data sets spell it: ISO 639-3, also of the main member, and what RTP-LX calls BCMS.
_PAPER = (
    ("en", "English", "eng"),
    ("es", "Spanish", "spa"),
    ("fr", "French", "fra fre"),
    ("de", "German", "deu ger"),
    ("pt", "Portuguese", "por"),
    ("it", "Italian", "ita"),
    ("nl", "Dutch", "nld dut"),
    ("sv", "Swedish", "swe"),
    ("id", "Indonesian", "ind"),
    ("pl", "Polish", "pol"),
    ("cs", "Czech", "ces cze"),
    ("ru", "Russian", "rus"),
    ("zh", "Chinese", "zho chi cmn"),
    ("ja", "Japanese", "jpn"),
    ("ko", "Korean", "kor"),
    ("hi", "Hindi", "hin"),
    ("ar", "Arabic", "ara arb"),
)
_MORE = (
    ("am", "Amharic", "amh"),
    ("bg", "Bulgarian", "bul"),
    ("bn", "Bengali", "ben"),
    ("bs", "Bosnian", "bos"),
    ("ca", "Catalan", "cat"),
    ("cy", "Welsh", "cym"),
    ("da", "Danish", "dan"),
    ("el", "Greek", "ell"),
    ("et", "Estonian", "est ekk"),
    ("eu", "Basque", "eus"),
    ("fa", "Persian", "fas pes"),
    ("fi", "Finnish", "fin"),
    ("ga", "Irish", "gle"),
    ("gl", "Galician", "glg"),
    ("he", "Hebrew", "heb iw"),
    ("hr", "Croatian", "hrv"),
    ("hu", "Hungarian", "hun"),
    ("is", "Icelandic", "isl"),
    ("km", "Khmer", "khm"),
    ("lo", "Lao", "lao"),
    ("lt", "Lithuanian", "lit"),
    ("lv", "Latvian", "lav lvs"),
    ("mk", "Macedonian", "mkd"),
    ("ms", "Malay", "msa zsm"),
    ("my", "Burmese", "mya bur"),
    ("no", "Norwegian", "nor nob nb"),
    ("ro", "Romanian", "ron"),
    ("sh", "Serbo-Croatian", "hbs bcms"),
    ("sk", "Slovak", "slk"),
    ("sl", "Slovenian", "slv"),
    ("sq", "Albanian", "sqi als"),
    ("sr", "Serbian", "srp"),
    ("sw", "Swahili", "swa swh"),
    ("ta", "Tamil", "tam"),
    ("th", "Thai", "tha"),
    ("tl", "Tagalog", "tgl fil"),
    ("tr", "Turkish", "tur"),
    ("tt", "Tatar", "tat"),
    ("uk", "Ukrainian", "ukr"),
    ("ur", "Urdu", "urd"),
    ("vi", "Vietnamese", "vie"),
    ("yo", "Yoruba", "yor"),
    ("zh-hant", "Chinese, traditional", ""),
    ("zu", "Zulu", "zul"),
)

CODES: tuple[str, ...] = tuple(code for code, _, _ in _PAPER)
"""The paper's 17 languages, English first; zh is simplified Chinese."""

NAMES = MappingProxyType({code: name for code, name, _ in _PAPER + _MORE})
"""Language code (ISO 639-1, but zh-hant) to English name: the 17, then others that data sets and judges have."""

SCORED = frozenset({*NAMES, "hi-Latn"})
"""What a scorer may cover: judges tell Hindi in Latin letters apart, data sets do not."""

UNSPACED = frozenset({"ja", "km", "lo", "my", "th", "zh", "zh-hant"})
"""Languages written without spaces between words."""

# Of U+30FC, which lengthens kana, Unicode says that it has no script.
UNSPACED_SCRIPTS = r"\p{Han}\p{Hiragana}\p{Katakana}\u30FC\p{Thai}\p{Lao}\p{Khmer}\p{Myanmar}\p{Tibetan}"
"""Scripts without spaces between words, as the inside of a character class of the `regex` package."""

_SPELLED = {other: code for code, _, others in _PAPER + _MORE for other in others.split()}
_TRADITIONAL = frozenset({"hant", "tw", "hk", "mo"})


@checked
def name(code: str) -> str:
    """The language's English name; the code itself where it is none that is known."""
    return NAMES.get(code, code)


@checked
def check(languages: str | Iterable[str], *, among: Collection[str] = NAMES) -> tuple[str, ...]:
    """Return `languages` as a tuple of known codes, in the given order.

    Raises:
        ValueError: a code is not one of `among`; the message lists these.
    """
    codes = (languages,) if isinstance(languages, str) else tuple(languages)
    unknown = [code for code in codes if code not in among]
    if unknown:
        known = ", ".join(sorted(among))
        raise ValueError(f"unknown language {', '.join(map(repr, unknown))}: expected one of {known}")
    return codes


@checked
def in_order(languages: Iterable[str]) -> tuple[str, ...]:
    """Distinct codes in the house's order; codes that are not among the 17 follow, sorted."""
    given = set(languages)
    return tuple(c for c in CODES if c in given) + tuple(sorted(given - set(CODES)))


@checked
def spelled(spelling: str) -> str | None:
    """The code of a language as a data set spells it, or None where it is not known.

    `PT-BR`, `por_Latn`, `por` and `Pt` are all `pt`: regions are not told apart, nor scripts, but for Chinese, where
    `ZH-Hant` is not `zh`.
    """
    first, *rest = re.split("[-_]", spelling.strip().lower())
    code = _SPELLED.get(first, first)
    if code == "zh" and not _TRADITIONAL.isdisjoint(rest):
        return "zh-hant"
    return code if code in NAMES else None
