import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from xlingtox import languages, mini
from xlingtox.evaluation import degenerate

SENTENCES = {
    "en": "he said that nobody had ever seen such a fool",
    "es": "dijo que nadie había visto nunca a un tonto así",
    "fr": "il a dit que personne n'avait jamais vu un tel idiot",
    "de": "er sagte, dass niemand je so einen Narren gesehen habe",
    "pt": "disse que ninguém tinha visto um tolo assim",
    "it": "ha detto che nessuno aveva mai visto uno sciocco simile",
    "nl": "hij zei dat niemand ooit zo'n dwaas had gezien",
    "sv": "han sade att ingen någonsin hade sett en sådan dåre",
    "id": "dia berkata bahwa tidak ada yang pernah melihat orang bodoh seperti itu",
    "pl": "powiedział, że nikt nigdy nie widział takiego głupca",
    "cs": "řekl, že nikdo nikdy takového hlupáka neviděl",
    "ru": "он сказал, что никто никогда не видел такого дурака",
    "zh": "他说从来没有人见过这样的傻瓜",
    "ja": "彼はそんなばかを見たことがないとスーパーで言った",
    "ko": "그는 그런 바보를 본 사람이 아무도 없다고 말했다",
    "hi": "उसने कहा कि किसी ने ऐसा मूर्ख कभी नहीं देखा",
    "ar": "قال إنه لم ير أحد مثل هذا الأحمق من قبل",
}
ANY = st.text(st.characters(exclude_categories=()))


def kind(text, code="en", **how):
    return degenerate.kinds([text], [code], **how)[0]


@pytest.mark.parametrize("code", languages.CODES)
def test_a_sentence_is_sound_in_its_language_and_wrong_in_other_scripts(code):
    assert kind(SENTENCES[code], code) == kind(SENTENCES[code].upper(), code) == "sound"
    for other in languages.CODES:
        shared = set(degenerate.SCRIPTS[code]) & set(degenerate.SCRIPTS[other])
        if not shared:
            assert kind(SENTENCES[code], other) == "wrong script", other


@pytest.mark.parametrize("code", languages.CODES)
def test_real_sentences_are_sound(code):
    table = mini.held_out(n=50, languages=(code,))
    assert set(degenerate.kinds(table["text"], table["language"])) == {"sound"}


@pytest.mark.parametrize(
    "text", ["", "  \n\t", "...", "?! - ()", "\u200b\u200e\ufeff", "\ufffd\ufffd", "\u3164", "\x00\ud800"]
)
def test_empty(text):
    assert kind(text) == "empty"


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("the cat, the cat, the cat", "en"),
        ("The cat! The Cat. THE CAT", "en"),
        ("fool fool fool fool fool", "en"),
        ("he is a fool and a fool and a fool and a fool and a", "en"),  # a way in, and cut short
        ("傻瓜傻瓜傻瓜", "zh"),
        ("ばかだ。ばかだ。ばかだ。", "ja"),
        ("바보야 정말 바보야 정말 바보야 정말", "ko"),
        ("hahahahaha", "en"),
        ("haha hahaha hahahaha", "en"),
        ("aaaaaaaa", "en"),
        ("😂" * 20, "en"),
        ("♥" * 20, "en"),
        ("❤\ufe0f " * 6, "en"),
        ("lol 😂😂😂😂😂😂", "en"),
        ("0" * 40, "en"),
        ("1234567890 " * 3, "en"),
        ("ຄວາຍ" * 3, "lo"),
    ],
)
def test_repeated(text, code):
    assert kind(text, code) == "repeated"


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("ha ha ha", "en"),
        ("no, no, no!", "en"),
        ("the cat, the cat", "en"),
        ("he is very very very very very silly indeed", "en"),  # what follows is new
        ("1,000,000 people", "en"),
        ("1000000", "en"),
        ("banana", "en"),
        ("😂", "en"),
        ("😂😂😂 so funny", "en"),
        ("so very funny 😂😂😂", "en"),
        ("1000000000000000", "en"),
        ("0.3333333333333333", "en"),
        ("12345678901234567890123", "en"),
        ("00000000000000000000 people live here", "en"),
        ("2024", "ar"),
        ("OK", "zh"),
        ("我有一台 iPhone 手机和电脑", "zh"),
        ("コーヒーはスーパーで", "ja"),
        ("он сказал OK", "ru"),
    ],
)
def test_sound(text, code):
    assert kind(text, code) == "sound"


MORE = {
    "am": "እንደዚህ ያለ ሞኝ ማንም አላየም",
    "bg": "каза, че никой не е виждал такъв глупак",
    "el": "είπε ότι κανείς δεν είχε δει τέτοιο ηλίθιο",
    "fa": "گفت که هیچ‌کس چنین احمقی ندیده است",
    "he": "הוא אמר שאיש לא ראה טיפש כזה",
    "sr": "рекао је да нико није видео такву будалу",
    "bs": "rekao je da niko nije vidio takvu budalu",
    "ta": "அப்படிப்பட்ட முட்டாளை யாரும் பார்த்ததில்லை",
    "th": "เขาบอกว่าไม่มีใครเคยเห็นคนโง่แบบนี้",
    "tr": "kimsenin böyle bir aptal görmediğini söyledi",
    "zh-hant": "他說從來沒有人見過這樣的傻瓜",
}


@pytest.mark.parametrize("code", MORE)
def test_other_languages_have_their_scripts_too(code):
    assert kind(MORE[code], code) == "sound"
    for other in ("en", "ru", "zh", "hi"):
        if not set(degenerate.SCRIPTS[code]) & set(degenerate.SCRIPTS[other]):
            assert kind(MORE[code], other) == kind(SENTENCES[other], code) == "wrong script", other


@pytest.mark.parametrize("code", languages.NAMES)
def test_every_known_language_has_a_script(code):
    assert kind("ab 12", code) == "sound"
    assert kind("𐌰𐌱𐌲𐌳 𐌰𐌱𐌳𐌲", code) == "wrong script"


def test_half_of_the_words_is_enough():
    assert kind("дурак foolishness", "ru") == kind("дурак foolishness", "en") == "sound"
    assert kind("дурак foolish man", "ru") == "wrong script"
    assert kind("дурак a b c", "ru") == "sound", "three letters only"
    assert kind("我叫Jonathan", "zh") == "sound", "a character stands for a word"
    assert kind("我是 Jonathan Archibald Smith", "zh") == "wrong script"
    assert kind('Tom이 "Happy Birthday" 노래를 시작했다.', "ko") == "sound", "a particle makes a name a word of its own"


@settings(deadline=None)
@given(st.lists(st.sampled_from(["at", "be", "do"]), min_size=1, max_size=16))
def test_repetition_by_plain_loops(words):
    found = False
    for start in range(len(words) // 4 + 1):
        run = words[start:]
        for period in range(1, len(run) + 1):
            often = 5 if period == 1 else 3
            same = all(run[i] == run[i + period] for i in range(len(run) - period))
            found |= same and len(run) >= often * period
    letters = "".join(words)  # at most three different words: the letters alone may be a loop too
    for start in range(len(letters) // 4 + 1):
        run = letters[start:]
        for period in range(1, len(run) // 5 + 1):
            found |= all(run[i] == run[i + period] for i in range(len(run) - period))
    assert kind(" ".join(words)) == ("repeated" if found else "sound")


def test_shares_by_language_in_the_houses_order():
    texts = ["", "дурак", "the cat sat", "...", "кот спит", "he ran"]
    codes = ["ru", "ru", "en", "en", "ru", "en"]
    assert list(degenerate.shares(texts, codes).items()) == [("en", 1 / 3), ("ru", 1 / 3)]


def test_an_identifier_is_asked_about_sound_text_only_and_may_be_unsure():
    asked = []

    def identify(texts):
        asked.extend(texts)
        return ["es", None, "en"]

    texts = ["el gato duerme", "", "hm\ud800m", "the dog ran"]
    assert degenerate.kinds(texts, ["en"] * 4, identify_language=identify) == [
        "wrong language",
        "empty",
        "sound",
        "sound",
    ]
    assert asked == ["el gato duerme", "hm\ufffdm", "the dog ran"]
    assert degenerate.shares(texts[2:], ["en"] * 2, identify_language=lambda _: ["en", None]) == {"en": 0.0}
    with pytest.raises(ValueError, match="gave 1 languages for 3 texts"):
        degenerate.kinds(texts, ["en"] * 4, identify_language=lambda _: ["en"])


def test_lingua_tells_languages_of_one_script():
    pytest.importorskip("lingua")
    identify = degenerate.lingua()
    codes = list(SENTENCES)
    assert degenerate.kinds(list(SENTENCES.values()), codes, identify_language=identify) == ["sound"] * len(codes)
    assert kind(SENTENCES["pl"], "es", identify=identify) == "wrong language"
    assert kind(SENTENCES["zh"], "ja", identify=identify) == "wrong language"


def test_without_lingua_its_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "lingua", None)
    with pytest.raises(ImportError, match=r"pip install 'xlingtox\[lingua\]'"):
        degenerate.lingua()


@pytest.mark.parametrize(
    ("texts", "codes", "words"), [(["a"], [], "1 texts and 0 languages"), (["a"], ["xx"], "unknown language 'xx'")]
)
def test_bad_input(texts, codes, words):
    with pytest.raises(ValueError, match=words):
        degenerate.kinds(texts, codes)


@settings(deadline=None, max_examples=300)
@given(ANY, st.sampled_from(languages.CODES))
def test_any_text_is_of_some_kind(text, code):
    assert kind(text, code) in ("sound", "empty", "repeated", "wrong script")


@pytest.mark.parametrize("unit", ["a", "ab ", "的", "\u202e", "\ud800", "a" * 99 + " b "])
def test_long_texts_take_no_more_steps_than_their_length(unit):
    """Twice the text is at most twice the lines of Python that run; what a regular expression looks at is one pass."""

    def steps(length):
        text, count = (unit * length)[:length], 0

        def counted(frame, event, _):
            nonlocal count
            count += event == "line"
            return counted

        before = sys.gettrace()
        sys.settrace(counted)
        try:
            kind(text, "en")
        finally:
            sys.settrace(before)
        return count

    assert steps(8_000) <= 2.1 * steps(4_000) + 100
    kind((unit * 100_000)[:100_000], "en")
