import pytest
from hypothesis import given
from hypothesis import strategies as st

from xlingtox import languages


def test_the_seventeen_english_first():
    assert len(set(languages.CODES)) == len(languages.NAMES) == 17
    assert languages.CODES[0] == "en"
    with pytest.raises(TypeError):
        languages.NAMES["en"] = "Anglish"  # type: ignore[index]


@pytest.mark.parametrize(("given_codes", "expected"), [("de", ("de",)), (["ko", "en"], ("ko", "en")), ([], ())])
def test_check_keeps_the_given_order(given_codes, expected):
    assert languages.check(given_codes) == expected


@pytest.mark.parametrize("unknown", ["xx", "EN", "english", ""])
def test_an_unknown_language_is_named_and_the_known_are_listed(unknown):
    with pytest.raises(ValueError, match=f"unknown language '{unknown}'.*ar, cs, de, en"):
        languages.check(["en", unknown])


def test_names():
    assert (languages.name("hi"), languages.name("xx")) == ("Hindi", "xx")


@given(st.lists(st.sampled_from([*languages.CODES, "xx", "aa"])))
def test_in_order_is_a_sorted_set(codes):
    found = languages.in_order(codes)
    rank = {code: i for i, code in enumerate([*languages.CODES, "aa", "xx"])}
    assert found == tuple(sorted(set(codes), key=rank.__getitem__))
