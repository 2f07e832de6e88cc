import pytest
from hypothesis import given
from hypothesis import strategies as st

from xlingtox import languages


def test_the_seventeen_english_first():
    assert len(set(languages.CODES)) == len(languages.CODES) == 17
    assert languages.CODES[0] == "en"
    assert tuple(languages.NAMES)[:17] == languages.CODES
    assert languages.NAMES.keys() >= languages.UNSPACED
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
    found = languages.in_order(codes)
    rank = {code: i for i, code in enumerate([*languages.CODES, "aa", "xx"])}
    assert found == tuple(sorted(set(codes), key=rank.__getitem__))


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
