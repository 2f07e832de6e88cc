"""The table of languages: their codes and names, how data sets spell them, and how they are written.

Every table and figure lists languages in the order of this table.
"""

import itertools
import re
from collections.abc import Collection, Iterable, Mapping
from types import MappingProxyType

from xlingtox.checking import checked

# Each row holds our code, the English name, and other codes that data sets use for it. These are the codes of three
# letters, which may name the main variety of a language (`arb` is Standard Arabic), older codes, and RTP-LX's BCMS.
_PAPER_LANGUAGES = (
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
_OTHER_LANGUAGES = (
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

CODES: tuple[str, ...] = tuple(code for code, _, _ in _PAPER_LANGUAGES)
"""The paper's 17 languages, English first; zh is simplified Chinese."""

NAMES = MappingProxyType({code: name for code, name, _ in _PAPER_LANGUAGES + _OTHER_LANGUAGES})
"""English names by language code: the paper's 17, then others that data sets and judges cover.

The codes are those of ISO 639-1, where `zh` is simplified Chinese. `zh-hant`, traditional Chinese, is our addition.
"""

SCORED = frozenset({*NAMES, "hi-Latn"})
"""Languages that a scorer may cover: those of `NAMES`, and `hi-Latn`, Hindi in Latin letters, which no data set has."""

UNSPACED: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "ja": ("Han", "Hiragana", "Katakana"),
        "km": ("Khmer",),
        "lo": ("Lao",),
        "my": ("Myanmar",),
        "th": ("Thai",),
        "zh": ("Han",),
        "zh-hant": ("Han",),
    }
)
"""Languages written without spaces between words, with the Unicode scripts of their words."""

# Tibetan has no spaces either, but none of our languages is written in it. U+30FC lengthens a vowel in Japanese, and
# Unicode gives it no script.
_OTHER_UNSPACED = r"\p{Tibetan}\u30FC"

_SCRIPTS = dict.fromkeys(itertools.chain(*UNSPACED.values()))
UNSPACED_SCRIPTS = "".join(rf"\p{{{script}}}" for script in _SCRIPTS) + _OTHER_UNSPACED
"""Letters of the scripts without spaces, to be put between the brackets of a `regex` character class."""

RIGHT_TO_LEFT = frozenset({"ar", "fa", "he", "ur"})
"""Languages that are written from right to left."""

_CODE_BY_SPELLING = {
    spelling: code for code, _, spellings in _PAPER_LANGUAGES + _OTHER_LANGUAGES for spelling in spellings.split()
}
_TRADITIONAL_CHINESE = frozenset({"hant", "tw", "hk", "mo"})
"""Scripts and regions that tell traditional from simplified Chinese."""

_SCRIPTS_OF: Mapping[str, str] = {
    "Cyrillic": "bg mk ru sr tt uk",
    "Arabic": "ar fa ur",
    "Han": "zh zh-hant",
    "Kana and Han": "ja",
    "Hangul": "ko",
    "Devanagari": "hi",
    "Bengali": "bn",
    "Ethiopic": "am",
    "Greek": "el",
    "Hebrew": "he",
    "Khmer": "km",
    "Lao": "lo",
    "Myanmar": "my",
    "Tamil": "ta",
    "Thai": "th",
}
_FAMILIES_OF: Mapping[str, str] = {
    "Germanic": "en de nl sv da is no",
    "Romance": "es fr pt it ca gl ro",
    "Slavic": "pl cs ru bg bs hr mk sh sk sl sr uk",
    "Baltic": "lt lv",
    "Celtic": "cy ga",
    "Greek": "el",
    "Albanian": "sq",
    "Indo-Aryan": "hi bn ur",
    "Iranian": "fa",
    "Semitic": "ar am he",
    "Austronesian": "id ms tl",
    "Sinitic": "zh zh-hant",
    "Burmo-Qiangic": "my",
    "Japonic": "ja",
    "Koreanic": "ko",
    "Uralic": "et fi hu",
    "Turkic": "tr tt",
    "Austroasiatic": "km vi",
    "Tai-Kadai": "lo th",
    "Dravidian": "ta",
    "Atlantic-Congo": "sw yo zu",
    "Basque": "eu",
}
_SCRIPT_OF = {code: script for script, codes in _SCRIPTS_OF.items() for code in codes.split()}
_FAMILY_OF = {code: family for family, codes in _FAMILIES_OF.items() for code in codes.split()}


@checked
def name(code: str) -> str:
    """Return the language's English name, or the code itself where it is unknown.

    Example:
        >>> xt.languages.name("hi")
        'Hindi'
    """
    return NAMES.get(code, code)


@checked
def check(languages: str | Iterable[str], *, among: Collection[str] = NAMES) -> tuple[str, ...]:
    """Return `languages` as a tuple of known codes, in the order in which they came.

    Raises:
        ValueError: a code is not among the known ones. The message lists them.

    Example:
        >>> xt.languages.check(["es", "en"])
        ('es', 'en')
        >>> xt.languages.check("spanish", among=("en", "es"))
        Traceback (most recent call last):
        ValueError: unknown language 'spanish': expected one of en, es
    """
    codes = (languages,) if isinstance(languages, str) else tuple(languages)
    unknown = [code for code in codes if code not in among]
    if unknown:
        known = ", ".join(sorted(among))
        raise ValueError(f"unknown language {', '.join(map(repr, unknown))}: expected one of {known}")
    return codes


@checked
def in_order(languages: Iterable[str]) -> tuple[str, ...]:
    """Return the codes without repetition: first the paper's 17, in the order of `CODES`, then the others, sorted.

    Example:
        >>> xt.languages.in_order(["zh", "en", "zh", "da"])
        ('en', 'zh', 'da')
    """
    codes = set(languages)
    return tuple(code for code in CODES if code in codes) + tuple(sorted(codes - set(CODES)))


@checked
def spelled(spelling: str) -> str | None:
    """Return our code for a language as a data set spells it, or None where we do not know it.

    Regions and scripts are ignored, so that `PT-BR`, `por_Latn`, `por` and `Pt` are all `pt`. Chinese is the exception:
    `ZH-Hant` is `zh-hant`, not `zh`.

    Example:
        >>> xt.languages.spelled("por_Latn"), xt.languages.spelled("ZH-Hant"), xt.languages.spelled("README")
        ('pt', 'zh-hant', None)
    """
    language, *subtags = re.split("[-_]", spelling.strip().lower())
    code = _CODE_BY_SPELLING.get(language, language)
    if code == "zh" and not _TRADITIONAL_CHINESE.isdisjoint(subtags):
        return "zh-hant"
    return code if code in NAMES else None


@checked
def script(code: str) -> str:
    """Return the script that a language is written in, by its English name.

    Two languages of one script share letters, and so they share tokens. It is the script that the Unicode CLDR takes a
    language to be written in if nothing else is said (its likely subtags). Japanese mixes kana and Han characters, so
    its script is not that of Chinese.

    Raises:
        ValueError: the language is unknown.

    Example:
        >>> xt.languages.script("sv"), xt.languages.script("ru"), xt.languages.script("ja")
        ('Latin', 'Cyrillic', 'Kana and Han')
    """
    check(code)
    return _SCRIPT_OF.get(code, "Latin")


@checked
def family(code: str) -> str:
    """Return the family of a language, at the level at which relatives still share many words.

    Names and members are those of Glottolog 5 (Hammarström et al. 2024). Indo-European, Afro-Asiatic and Sino-Tibetan
    are too wide to say that two languages are alike. They are split into branches, such as Germanic, Semitic and
    Sinitic.

    Raises:
        ValueError: the language is unknown.

    Example:
        >>> xt.languages.family("sv"), xt.languages.family("en"), xt.languages.family("hi")
        ('Germanic', 'Germanic', 'Indo-Aryan')
    """
    check(code)
    return _FAMILY_OF[code]
