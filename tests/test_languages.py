"""The table of languages: codes, spellings, order, and how each language is written."""

import pytest
import regex
from hypothesis import given
from hypothesis import strategies as st

from xlingtox import languages
from xlingtox.evaluation.degenerate import SCRIPTS


def test_the_seventeen_english_first():
    assert len(set(languages.CODES)) == len(languages.CODES) == 17
    assert languages.CODES[0] == "en"
    assert tuple(languages.NAMES)[:17] == languages.CODES
    assert languages.NAMES.keys() >= languages.UNSPACED.keys()
    assert languages.NAMES.keys() >= languages.RIGHT_TO_LEFT
    with pytest.raises(TypeError):
        languages.NAMES["en"] = "Anglish"  # type: ignore[index]


@pytest.mark.parametrize(("given_codes", "expected"), [("de", ("de",)), (["ko", "en"], ("ko", "en")), ([], ())])
def test_check_keeps_the_given_order(given_codes, expected):
    assert languages.check(given_codes) == expected


@pytest.mark.parametrize("unknown", ["xx", "EN", "english", ""])
def test_an_unknown_language_is_named_and_the_known_are_listed(unknown):
    with pytest.raises(ValueError, match=f"unknown language '{unknown}'.*am, ar, .*, zu$"):
        languages.check(["en", unknown])


def test_names():
    assert (languages.name("hi"), languages.name("xx")) == ("Hindi", "xx")


@given(st.lists(st.sampled_from([*languages.CODES, "xx", "aa"])))
def test_in_order_is_a_sorted_set(codes):
    ordered = languages.in_order(codes)
    rank = {code: i for i, code in enumerate([*languages.CODES, "aa", "xx"])}
    assert ordered == tuple(sorted(set(codes), key=rank.__getitem__))


def test_other_languages_may_be_too_few_to_choose_from():
    assert languages.check("da") == ("da",)
    with pytest.raises(ValueError, match=r"unknown language 'da': expected one of ar, cs, de, en, .*, zh$"):
        languages.check("da", among=languages.CODES)


RTP_LX = "EN ES FR DE PT IT NL SV ID PL CS RU ZH-Hans JA KO HI AR"
TATOEBA = "eng spa fra deu por ita nld swe ind pol ces rus cmn jpn kor hin ara"
FLORES = """eng_Latn spa_Latn fra_Latn deu_Latn por_Latn ita_Latn nld_Latn swe_Latn ind_Latn pol_Latn ces_Latn rus_Cyrl
    zho_Hans jpn_Jpan kor_Hang hin_Deva arb_Arab"""


@pytest.mark.parametrize("spellings", [RTP_LX, TATOEBA, FLORES, " ".join(languages.CODES)])
def test_the_seventeen_as_data_sets_spell_them(spellings):
    assert tuple(map(languages.spelled, spellings.split())) == languages.CODES


@pytest.mark.parametrize(
    ("spelling", "code"),
    [
        ("PT-BR", "pt"),
        ("Pt-Br", "pt"),
        ("NO-NB", "no"),
        ("nob_Latn", "no"),
        ("BCMS", "sh"),
        ("HE", "he"),
        ("ZH-Hant", "zh-hant"),
        ("zho_Hant", "zh-hant"),
        ("zh-TW", "zh-hant"),
        ("cmn_Hans", "zh"),
        (" EN\n", "en"),
        ("arz_Arab", None),  # Egyptian Arabic is not Arabic
        ("README", None),
        ("", None),
        ("-", None),
    ],
)
def test_other_spellings(spelling, code):
    assert languages.spelled(spelling) == code


def test_every_code_is_its_own_spelling():
    assert [languages.spelled(code) for code in languages.NAMES] == list(languages.NAMES)


# One letter of each script that a known language is written in.
LETTERS = dict(
    item.split("=")
    for item in """Latin=a Cyrillic=ж Arabic=ع Han=字 Hiragana=ひ Katakana=カ Hangul=글 Devanagari=क Ethiopic=አ
    Bengali=ক Greek=λ Hebrew=ש Khmer=ក Lao=ກ Myanmar=က Tamil=க Thai=ก""".split()
)


def without_spaces(script: str) -> bool:
    return regex.fullmatch(f"[{languages.UNSPACED_SCRIPTS}]", LETTERS[script]) is not None


@pytest.mark.parametrize("code", languages.NAMES)
def test_the_tables_of_languages_and_of_scripts_without_spaces_agree(code):
    """A language is written without spaces if and only if its scripts are."""
    scripts = set(SCRIPTS[code]) - {"Bopomofo"}  # It spells out sounds; no word of a list is written in it.
    assert {without_spaces(script) for script in scripts} == {code in languages.UNSPACED}
    assert code not in languages.UNSPACED or scripts == set(languages.UNSPACED[code])


def test_marks_and_scripts_of_no_known_language_without_spaces():
    for letter in ("ー", "བ"):
        assert regex.fullmatch(f"[{languages.UNSPACED_SCRIPTS}]", letter)
    for letter in ("한", "a", "1", " ", "、"):
        assert not regex.fullmatch(f"[{languages.UNSPACED_SCRIPTS}]", letter)


def test_right_to_left_are_the_languages_in_arabic_and_hebrew_letters():
    assert {code for code, scripts in SCRIPTS.items() if {"Arabic", "Hebrew"} & set(scripts)} == languages.RIGHT_TO_LEFT


def test_scripts_and_families_of_the_seventeen():
    latin = dict.fromkeys("en es fr de pt it nl sv id pl cs".split(), "Latin")
    others = {"ru": "Cyrillic", "zh": "Han", "ja": "Kana and Han", "ko": "Hangul", "hi": "Devanagari", "ar": "Arabic"}
    assert {code: languages.script(code) for code in languages.CODES} == latin | others
    families = """Germanic Romance Romance Germanic Romance Romance Germanic Germanic Austronesian Slavic Slavic Slavic
        Sinitic Japonic Koreanic Indo-Aryan Semitic""".split()
    assert [languages.family(code) for code in languages.CODES] == families


def test_every_language_has_a_script_that_its_letters_are_of_and_a_family():
    for code in languages.NAMES:
        named = languages.script(code).replace("Kana", "Hiragana").split(" and ")
        assert set(named) <= set(SCRIPTS[code]), code
        assert languages.family(code)


@pytest.mark.parametrize("table", [languages.script, languages.family])
def test_an_unknown_language_has_neither_script_nor_family(table):
    with pytest.raises(ValueError, match="unknown language 'xx': expected one of"):
        table("xx")
