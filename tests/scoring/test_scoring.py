import math
import unicodedata

import numpy as np
import pytest
import regex
from hypothesis import given, settings
from hypothesis import strategies as st

from xlingtox import text
from xlingtox.scoring import WordlistScorer, check_scores

WORDS = {
    "en": ["fool", "rat", "good-for-nothing", "***"],
    "fr": ["lâche", "idiot"],
    "de": ["Lügner"],
    "ru": ["лжец"],
    "ar": ["لص", "غبي"],
    "hi": ["चोर", "झूठा", "लफ़ंगा"],
    "zh": ["傻瓜"],
    "ja": ["泥棒", "ずぼら"],
    "ko": ["바보"],
}


@pytest.fixture(scope="module")
def scorer():
    return WordlistScorer(WORDS)


@pytest.fixture(scope="module")
def everywhere():
    return WordlistScorer(WORDS, everywhere=True, name="anywhere")


@pytest.mark.parametrize(
    ("language", "text"),
    [
        ("en", "He is a fool."),
        ("en", "FOOL"),
        ("en", "you Rat!"),
        ("en", "a rat, he said; (fool)"),
        ("en", "rat's tail"),
        ("en", "that good-for-nothing"),
        ("en", "what a *** day"),
        ("fr", "Quel LÂCHE!"),
        ("de", "ein lügner"),
        ("de", "LÜGNER"),
        ("ru", "Он ЛЖЕЦ."),
        ("ar", "إنه لص، والجميع يعرف ذلك."),
        ("ar", "لص"),
        ("hi", "वह चोर है।"),
        ("hi", "वह झूठा है।"),
        ("hi", "लफ़ंगा।"),
        ("zh", "他真是个大傻瓜呢"),
        ("ja", "彼は泥棒です。"),
        ("ja", "ずぼらだ"),
        ("ko", "그는 바보다."),
        ("ko", "바보는 웃는다"),
        ("ko", "바보"),
    ],
)
def test_found(scorer, language, text):
    assert scorer.score([text], [language]) == [1.0]


@pytest.mark.parametrize(
    ("language", "text"),
    [
        ("en", ""),
        ("en", "rather"),
        ("en", "pirate"),
        ("en", "a rat2 or 2rat"),
        ("en", "foolish"),
        ("en", "tomfool"),
        ("en", "good for nothing"),
        ("en", "ra t"),
        ("en", "rat\u0301"),  # another letter, written with a combining accent
        ("fr", "lache"),
        ("fr", "lâchement"),
        ("de", "Lugner"),
        ("de", "Lügnerin"),
        ("ar", "لصوص"),
        ("ar", "اللص"),
        ("ar", "غبية"),
        ("hi", "चोरी"),  # the next character is a vowel sign, a combining mark
        ("hi", "चोरों का"),
        ("hi", "झूठ"),
        ("ko", "산바보"),
        ("zh", "傻 瓜"),
        ("en", "傻瓜"),  # only its own language's words
        ("zh", "fool"),
    ],
)
def test_not_found(scorer, language, text):
    assert scorer.score([text], [language]) == [0.0]


LISTED = {
    "ar": ["أحمق", "لص"],
    "he": ["טיפש"],
    "hi": ["लफ़ंगा", "क्षुद्र"],
    "ru": ["тёлка", "дурак"],
    "uk": ["пʼяниця"],
    "de": ["scheiße"],
    "el": ["ηλίθιος"],
    "tr": ["pislik", "kıl"],
    "en": ["fool", "you fool", "you fool you", "rat"],
    "ja": ["バカ", "sm", "sm女王", "g スポット"],
    "zh": ["傻瓜", "3p"],
    "th": ["โง่"],
    "ko": ["바보", "idiot"],
    "km": ["ឆ្កួត"],
}


@pytest.mark.parametrize(
    ("language", "text", "found"),
    [
        ("ar", "احمق", 1),  # the hamza is left out as often as written
        ("ar", "لِصٌّ", 1),  # vowel signs
        ("ar", "لـــص", 1),  # a word stretched
        ("ar", "لصة", 0),
        ("he", "טִפֵּשׁ", 0),  # another spelling
        ("he", "טִיפֵּשׁ", 1),
        ("hi", "लफंगा", 1),
        ("hi", "क्‍षुद्र", 1),
        ("ru", "ТЕЛКА", 1),
        ("ru", "дура́к", 1),
        ("ru", "дураки", 0),
        ("uk", "п’яниця і п'яниця", 1),
        ("de", "SCHEISSE", 1),
        ("el", "ΗΛΊΘΙΟΣ", 1),
        ("tr", "PİSLİK", 1),
        ("tr", "KIL", 1),
        ("en", "ｆｏｏｌ", 1),
        ("en", "you\n fool", 1),
        ("ja", "ﾊﾞｶだ", 1),
        ("ja", "これはsmです", 1),  # a Latin word is whole in Japanese, too
        ("ja", "これはsmartです", 0),
        ("ja", "g　スポットだ", 1),
        ("zh", "他3p吗", 1),
        ("zh", "3pm", 0),
        ("th", "คนโง่มาก", 1),
        ("km", "អ្នកឆ្កួតណាស់", 1),
        ("ko", "idiot이다", 1),  # particles are written onto foreign words
        ("ko", "idiots", 0),
    ],
)
def test_writing_systems(language, text, found):
    assert WordlistScorer(LISTED).score([text], [language]) == [found]
    everywhere = WordlistScorer(LISTED, everywhere=True)
    assert everywhere.score([text], ["en"]) == [found]


@pytest.mark.parametrize(
    ("language", "text", "found"),
    [
        ("en", "You fool, you fool you! rather a RAT", ["You fool", "you fool you", "RAT"]),
        ("en", "you foolish fool", ["fool"]),
        ("ja", "sm女王とsm", ["sm女王", "sm"]),
        ("en", "", []),
    ],
)
def test_the_longest_word_is_found(language, text, found):
    assert WordlistScorer(LISTED).found(text, language) == found


@pytest.mark.parametrize(
    ("language", "word", "text", "found"),
    [
        ("en", "🖕", "x🖕y", 1),
        ("en", "🖕", "fool🖕🏿", 1),
        ("en", "❤", "a❤\ufe0fb", 1),
        ("en", "❤\ufe0f", "a❤b", 1),
        ("en", "a$$", "a$$hole", 1),  # ends with no letter
        ("en", "a$$", "ba$$", 0),
        ("en", "$hit", "bull$hit", 1),
        ("en", "$hit", "$hits", 0),
        ("en", "fool", "fool\ufe0f!", 1),
        ("en", "fool", "fo\u00adol fo\u200bol", 1),
        ("en", "fool", "f\u2060ool", 1),
        ("en", "fool", "foo\ufeffl", 1),
        ("en", "fool", "fool\u200bish", 0),
        ("ar", "كلب", "هو \ufedb\ufee0\ufe90", 1),
        ("ar", "كلب", "\ufedb\ufee0\ufe91\ufe94", 0),
        ("en", "fit fool", "ﬁt fool", 1),
        ("th", "น้ำ", "\u0e19\u0e49\u0e4d\u0e32", 1),
        ("th", "น้ำ", "\u0e19\u0e4d\u0e49\u0e32", 1),
        ("th", "\u0e19\u0e49\u0e4d\u0e32", "น้ำ", 1),
        ("lo", "\u0e99\u0ec9\u0eb3", "\u0e99\u0ecd\u0ec9\u0eb2", 1),
        ("el", "μαλάκας", "ΜΑΛΑΚΑΣ", 1),
        ("el", "μαλάκας", "μαλακας, ΜΑΛΆΚΑΣ", 1),
        ("de", "scheisse", "Scheiße", 1),
        ("de", "Scheiße", "SCHEISSE, SCHEIẞE", 1),
        ("de", "SCHEISSE", "scheiße", 1),
        ("de", "SCHEIẞE", "scheisse", 1),
        ("en", "ass", "aß", 0),
        ("en", "straße", "Strasse", 1),
    ],
)
def test_spellings_that_are_the_same(language, word, text, found):
    assert WordlistScorer({language: [word]}).score([text], [language]) == [found]


def test_everywhere_an_english_word_is_no_german_one():
    scorer = WordlistScorer({"en": ["ass"], "de": ["scheisse", "Narr"]}, everywhere=True)
    assert scorer.score(["ich aß", "he is an ass", "Scheiße"], ["de", "de", "en"]).tolist() == [0, 1, 1]


def test_the_revision_is_a_hash_of_the_words():
    base = WordlistScorer({"en": ["fool", "rat"], "de": ["Narr"]})
    same = WordlistScorer({"de": ["Narr", "Narr "], "en": ["rat", "fool"]}, name="other")
    others = [
        WordlistScorer({"en": ["fool", "rat", "\ud800"], "de": ["Narr"]}),
        WordlistScorer({"en": ["fool", "rat"], "sv": ["Narr"]}),
        WordlistScorer({"en": ["fool", "rat"], "de": ["Narr"]}, everywhere=True),
    ]
    assert len(base.revision) == 12
    assert same.revision == base.revision
    assert len({base.revision, *(scorer.revision for scorer in others)}) == 4


def test_long_texts_are_folded_in_one_pass(monkeypatch):
    """Sorting marks takes time by the square of their run: no long run gets there, and no text more than twice."""
    normalized = []

    def counted(form, text):
        normalized.append(text)
        return unicodedata.normalize(form, text)

    monkeypatch.setattr(text, "normalize", counted)
    scorer = WordlistScorer({"en": [f"word{i}" for i in range(2000)]}, everywhere=True)
    marks = ["\u0301" * 100_000, "a" + "\u0301" * 50_000 + "\u0323" * 50_000, "\u0644" + "\u064b\u0640" * 50_000]
    texts = ["word once, words twice; " * 4000, "x" * 100_000, "word" * 25_000, *marks]
    assert not scorer.score(texts, ["en"] * len(texts)).any()
    assert normalized
    assert max(len(run) for text in normalized for run in regex.findall(r"\p{M}+", text)) <= 31
    assert sum(map(len, normalized)) <= 2 * sum(map(len, texts))


@pytest.mark.parametrize("form", ["NFC", "NFD"])
@pytest.mark.parametrize(("language", "text"), [("fr", "un lâche"), ("de", "Lügner"), ("hi", "लफ़ंगा"), ("ko", "바보다")])
def test_composed_and_decomposed_text_are_the_same(scorer, language, text, form):
    assert scorer.score([unicodedata.normalize(form, text)], [language]) == [1.0]


@pytest.mark.parametrize(
    ("language", "text"),
    [
        ("en", "He is 傻瓜."),
        ("en", "He is 바보다."),
        ("ar", "إنه fool."),
        ("zh", "他是 fool。"),
        ("zh", "他是fool。"),  # no space on either side: scripts meet without one
        ("ja", "彼はЛжецです。"),
        ("ja", "彼は바보다です。"),
        ("zh", "他चोर，大家都知道。"),
    ],
)
def test_everywhere_finds_another_languages_word(scorer, everywhere, language, text):
    assert everywhere.score([text], [language]) == [1.0]
    assert scorer.score([text], [language]) == [0.0]


@pytest.mark.parametrize(("language", "text"), [("zh", "foolish"), ("ja", "これはrather良い"), ("ko", "चोरी")])
def test_everywhere_still_means_whole_words(everywhere, language, text):
    assert everywhere.score([text], [language]) == [0.0]


def test_scores_are_in_the_order_of_the_texts(scorer):
    scores = scorer.score(["rat", "rat", "傻瓜", "x"], ["en", "ru", "zh", "en"])
    assert scores.dtype == np.float64
    assert scores.tolist() == [1, 0, 1, 0]


def test_attributes(scorer, everywhere):
    assert scorer.languages == frozenset(WORDS)
    assert (scorer.name, everywhere.name) == ("wordlist", "anywhere")


@pytest.mark.parametrize("ask", [lambda s: s.score(["a", "b"], ["en", "sv"]), lambda s: check_scores(s, ["a"], ["sv"])])
def test_an_uncovered_language_is_an_error_that_names_the_covered(ask):
    with pytest.raises(ValueError, match="does not cover sv: it covers de, en"):
        ask(WordlistScorer({"en": ["fool"], "de": ["Narr"]}))


def test_a_language_for_each_text(scorer):
    with pytest.raises(ValueError):
        scorer.score(["a", "b"], ["en"])


@pytest.mark.parametrize("words", [{"en": []}, {"en": ["fool", " "]}, {"en": [""]}])
def test_blank_lists_are_refused(words):
    with pytest.raises(ValueError, match="'en' is empty or has a blank word"):
        WordlistScorer(words)


@pytest.mark.parametrize(
    ("words", "told"), [({}, "no word list"), ({"EN": ["a"], "en": ["a"]}, "unknown language 'EN'")]
)
def test_languages_that_there_are(words, told):
    with pytest.raises(ValueError, match=told):
        WordlistScorer(words)


@settings(deadline=None)
@given(st.text(st.characters()), st.sampled_from(sorted(WORDS)))
def test_any_text_has_a_score(scorer, everywhere, text, language):
    for judge in (scorer, everywhere):
        assert check_scores(judge, [text], [language])[0] in (0, 1)
        assert judge.score([f"{text} {WORDS[language][0]} {text}"], [language]) == [1.0]


@settings(deadline=None)
@given(
    st.text(st.characters(exclude_categories=["Cs"]), min_size=1).filter(str.strip), st.sampled_from(["en", "ja", "ko"])
)
def test_any_word_can_be_listed(word, language):
    assert WordlistScorer({language: [word]}).score([word], [language]) == [1.0]


class Fixed:
    name = "fixed"
    revision = "1"
    languages = frozenset({"en"})

    def __init__(self, *scores):
        self.scores = np.array(scores)

    def score(self, texts, languages):
        return self.scores


def test_good_scores_pass():
    assert check_scores(Fixed(0, 0.25, 1), ["a", "b", "c"], ["en"] * 3).tolist() == [0, 0.25, 1]


@pytest.mark.parametrize(
    ("scores", "words"),
    [
        ([0.1, math.nan], "outside"),
        ([0.1, math.inf], "outside"),
        ([0.1, -0.01], "outside"),
        ([0.1, 1.01], "outside"),
        ([0.1], "shape"),
        ([0.1, 0.2, 0.3], "shape"),
        ([[0.1], [0.2]], "shape"),
        ([], "shape"),
    ],
)
def test_what_is_no_score_is_refused(scores, words):
    with pytest.raises(ValueError, match=f"fixed returned .*{words}"):
        check_scores(Fixed(*scores), ["a", "b"], ["en", "en"])


def test_a_text_has_the_severity_of_its_most_severe_word():
    graded = WordlistScorer(
        {
            "en": {"rascal": 0.2, "fool": 0.45, "traitor": 1.0},
            "de": {"Großmaul": 0.3, "Lügner": 0.6},
            "ko": {"바보": 0.5},
        }
    )
    texts = ["a FOOL and a rascal", "rascal", "a kind man", "the traitor is a fool", "foolish"]
    assert graded.score(texts, ["en"] * 5).tolist() == [0.45, 0.2, 0.0, 1.0, 0.0]
    assert graded.score(["ein Grossmaul", "GROSSMAUL!", "Lu\u0308gner"], ["de"] * 3).tolist() == [0.3, 0.3, 0.6]
    assert graded.score(["그는 바보다"], ["ko"]).tolist() == [0.5]


def test_a_longer_listed_word_hides_a_shorter_one_in_it():
    graded = WordlistScorer({"en": {"pig": 0.8, "guinea pig": 0.1}})
    assert graded.score(["a guinea  pig", "a pig", "a pig and a guinea pig"], ["en"] * 3).tolist() == [0.1, 0.8, 0.8]


def test_everywhere_takes_the_greatest_severity_of_one_spelling():
    graded = WordlistScorer({"en": {"rat": 0.2}, "nl": {"rat": 0.7}, "fr": ["lâche"]}, everywhere=True)
    assert graded.score(["a rat", "een rat", "un lâche"], ["en", "nl", "en"]).tolist() == [0.7, 0.7, 1.0]


@pytest.mark.parametrize("severity", [0.0, -0.1, 1.1, math.nan])
def test_a_severity_outside_its_range_is_refused(severity):
    with pytest.raises(ValueError, match="the severity of 'fool' is"):
        WordlistScorer({"en": {"fool": severity}})


def test_severities_are_part_of_the_revision_and_words_alone_keep_theirs():
    listed, ones, graded = (WordlistScorer({"en": words}) for words in (["fool"], {"fool": 1.0}, {"fool": 0.5}))
    assert listed.revision == ones.revision != graded.revision


@given(st.dictionaries(st.sampled_from(WORDS["en"] + WORDS["fr"]), st.floats(0.01, 1), min_size=1))
def test_the_score_is_that_of_the_most_severe_word_found(severities):
    graded = WordlistScorer({"en": severities})
    written = " ".join([*severities, "and others"]).upper()
    assert graded.score([written], ["en"])[0] == max(severities[word.lower()] for word in severities)
