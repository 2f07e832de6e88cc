"""Pages in a real browser: nothing fails, nothing is fetched, all is drawn, menus work, hostile text is inert."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from browsing import visiting
from studies import HOSTILE, KEYS_OF_STAGES, hostile, made_up, only

from xlingtox import NeuronSet, TokenActivations, figures, files
from xlingtox.models.identity import Identity
from xlingtox.study import StudyResults, picture, report


def test_what_is_wrong_with_a_page_is_seen(browser, tmp_path):
    file = tmp_path / "bad.html"
    file.write_text(
        "<!DOCTYPE html><meta charset='utf-8'><script>console.error('said'); alert('shown'); fail()</script>"
        "<img src='http://127.0.0.1:9/x.png'><input><div style='width: 3000px'>wide</div>",
        "utf-8",
    )
    with visiting(browser, file) as visit:
        assert {"said", "dialog: shown", "fail is not defined"} <= set(visit.faults)
        assert visit.requests == ["http://127.0.0.1:9/x.png"]
        assert {fault.split(":")[0] for fault in visit.accessibility_faults()} >= {"image-alt", "label"}
        assert visit.overflows()


@pytest.fixture(scope="module")
def page(tmp_path_factory) -> Path:
    file = tmp_path_factory.mktemp("page") / "report.html"
    results = made_up()
    results["intervention"][0]["toxicity_by_language"]["de"] = None
    report.write(
        StudyResults.of(results), file, toxic_words={"en": ["fool", "idiot"], "es": ["tonto"], "ar": ["حمقاء"]}
    )
    return file


@pytest.mark.parametrize(("width", "scheme"), [(1280, "light"), (390, "dark")])
def test_the_report_on_a_wide_page_and_on_a_narrow_one(browser, page, width, scheme):
    with visiting(browser, page, width, scheme) as visit:
        drawn = visit.drawn()
        assert len(drawn) == 9
        assert all(len(traces) > 0 for traces in drawn)
        assert visit.accessibility_faults() == []
        assert not visit.overflows()
        wider = (
            "[...document.querySelectorAll('.wide')].filter((part) => part.scrollWidth > part.clientWidth + 1).length"
        )
        assert width < 1280 or visit.page.evaluate(wider) == 0, "no column is cut, with everything unfolded"
        cut = """[...document.querySelectorAll('.wide')].filter((frame) => {
          const named = frame.querySelector('caption span') ?? frame.querySelector('caption');
          const [own, whole] = [named, frame].map((part) => part.getBoundingClientRect());
          return own.left < whole.left - 1 || own.right > whole.right + 1;
        }).length"""
        assert visit.page.evaluate(cut) == 0, "a caption is read whole"
        scroll = "for (const frame of document.querySelectorAll('.wide')) frame.scrollLeft = 60"
        visit.page.evaluate(scroll)
        assert visit.page.evaluate(cut) == 0, "also where its table is scrolled"
        paper = visit.page.evaluate("document.querySelector('.plot .main-svg').style.background")
        assert paper == ("rgb(21, 24, 28)" if scheme == "dark" else "rgb(255, 255, 255)")
        assert visit.faults == []
        assert visit.requests == []


@pytest.mark.parametrize(
    ("stages", "source", "scheme", "n_figures"),
    [
        (["localize", "promoted", "intervene"], "en", "light", 2),
        (["retrieve"], "en", "dark", 1),
        (list(KEYS_OF_STAGES), "es", "dark", 14),
    ],
    ids=["doses", "retrieval", "Spanish"],
)
def test_a_report_of_some_stages_on_a_narrow_page(browser, tmp_path, stages, source, scheme, n_figures):
    file = tmp_path / "report.html"
    report.write(StudyResults.of(only(*stages, source_language=source)), file)
    with visiting(browser, file, 390, scheme) as visit:
        assert len(visit.drawn()) == n_figures
        assert visit.page.locator("#unmask").count() == ("promoted" in stages)
        visit.page.locator(".menu summary").press("Enter")
        visit.page.get_by_role("button", name="None", exact=True).press("Enter")
        visit.page.get_by_role("checkbox", name="Spanish").press("Space")
        assert len(visit.drawn()) == n_figures
        shown = visit.page.locator(".provenance").inner_text()
        assert "Amharic was dropped: no judge covers it." in shown
        assert visit.accessibility_faults() == []
        assert not visit.overflows()
        assert (visit.faults, visit.requests) == ([], [])


def test_it_is_printed_light_and_unfolded(browser, page):
    with visiting(browser, page, scheme="dark") as visit:
        visit.drawn()
        paper = "document.querySelector('.plot .main-svg').style.background"
        folded = "document.querySelectorAll('details:not([open])').length"
        visit.page.locator(".menu summary").click()
        before = visit.page.evaluate(folded)
        assert before > 5
        visit.page.evaluate("dispatchEvent(new Event('beforeprint'))")
        assert visit.page.evaluate(paper) == "rgb(255, 255, 255)"
        assert visit.page.evaluate(folded) == 0, "what is folded is printed too"
        visit.page.evaluate("dispatchEvent(new Event('afterprint'))")
        assert visit.page.evaluate(paper) == "rgb(21, 24, 28)"
        assert visit.page.evaluate(folded) == before


def test_the_menu_of_languages_filters_figures_tables_and_samples_by_keyboard(browser, page):
    with visiting(browser, page) as visit:
        before = visit.drawn()
        at = visit.page
        at.locator(".menu summary").press("Enter")
        at.get_by_role("button", name="None", exact=True).press("Enter")
        assert at.get_by_role("status").inner_text() == "none chosen, so all are shown"
        for name in ("Hindi", "English"):
            at.get_by_role("checkbox", name=name).press("Space")
        assert at.get_by_role("status").inner_text() == "2 of 17"
        bars, doses, acts, transfer, amplified, sources, neurons, curves, drift = visit.drawn()
        assert [trace["x"] for trace in bars] == [["en", "hi"]] * 2
        assert [trace["x"] for trace in acts] == [["en", "hi"]] * 2
        assert len(bars[1]["error_y"]["array"]) == 2
        assert transfer[-1]["text"] == ["hi"]
        assert transfer[0] == before[3][0], "the line is of all languages"
        assert [trace.get("fill") for trace in doses] == [None] * 6, "the band is of the mean over all"
        toxicity = next(trace for trace in doses if trace["name"] == "sources" and trace.get("meta"))
        assert toxicity["y"] == [0.5] * len(toxicity["x"])
        assert amplified[0]["y"] == [0.5] * len(amplified[0]["x"])
        assert [trace["y"] for trace in neurons] == [["en", "hi"]] * 3
        assert all(len(trace["z"]) == 2 for trace in neurons)
        assert [sources, curves, drift] == [before[5], *before[7:]]
        shown = "[...document.querySelectorAll('tr[data-language]')].filter((row) => !row.hidden).length"
        assert at.evaluate(shown) == 11, "two in each of five tables, and one in that of retrieval from English"
        notes = [note.inner_text() for note in at.locator(".note:visible").all()]
        assert notes[0] == notes[2]
        assert notes[:2] == [
            "Toxicity is the mean of the chosen languages; perplexity and degenerate text are those of all.",
            "The line and its band are those of all languages.",
        ]
        visible = at.locator("details[data-language]:visible summary").all_inner_texts()
        assert visible == ["English"], "the samples are in English and Arabic"
        at.get_by_role("checkbox", name="German").press("Space")
        toxicity = next(trace for trace in visit.drawn()[1] if trace["name"] == "sources" and trace.get("meta"))
        assert toxicity["y"] == [*[0.5] * (len(toxicity["x"]) - 1), None], "a missing score is a gap, never a zero"
        at.get_by_role("button", name="All", exact=True).click()
        assert at.get_by_role("status").inner_text() == "all 17"
        assert at.locator(".note:visible").count() == 0
        assert visit.drawn() == before
        at.get_by_role("button", name="None", exact=True).click()
        at.get_by_role("checkbox", name="English").press("Space")
        assert "None of the chosen languages has a place" in at.locator("#note-4").inner_text()
        assert visit.faults == []


def test_toxic_words_are_shown_when_asked_for_and_hidden_again(browser, page):
    with visiting(browser, page) as visit:
        at = visit.page
        at.evaluate("document.querySelectorAll('details').forEach((part) => { part.open = true; })")
        words = at.locator("body")
        button = at.locator("#unmask")
        assert button.inner_text() == "Show toxic words"
        assert "She is a f•••." in words.inner_text()
        assert "fool" not in words.inner_text()
        button.press("Enter")
        assert button.inner_text() == "Hide toxic words"
        assert "She is a fool." in words.inner_text()
        assert "حمقاء" in words.inner_text()
        button.press("Enter")
        assert button.inner_text() == "Show toxic words"
        assert "fool" not in words.inner_text()


@pytest.mark.parametrize("toxic_words", [None, {"en": ["fool"]}])
def test_hostile_text_in_a_report_does_not_run(browser, tmp_path, toxic_words):
    file = tmp_path / "report.html"
    report.write(StudyResults.of(hostile()), file, toxic_words=toxic_words)
    with visiting(browser, file) as visit:
        assert len(visit.drawn()) == 10
        visit.page.get_by_role("button", name="Show toxic words").click()
        visit.page.locator(".menu summary").click()
        visit.page.get_by_role("checkbox", name="German").click()
        visit.drawn()
        assert visit.page.locator("img").count() == 0
        assert visit.page.evaluate("document.body.innerText.includes('<script>alert(1)</script>')")
        assert (visit.faults, visit.requests) == ([], [])


def read(pieces, language="en", name="mini"):
    neurons = NeuronSet.of([(0, 1), (2, 7)])
    values = torch.arange(2.0 * len(pieces)).view(-1, 2) - 3
    return TokenActivations(language, pieces, 2, values, neurons, Identity(name, None, "float32", "0"))


def notebook(view, folder):
    """A page that shows a result as a notebook does."""
    file = folder / "notebook.html"
    html = f"<!DOCTYPE html><html lang='en'><title>n</title><meta charset='utf-8'><main>{view._repr_html_()}</main>"
    file.write_text(html, "utf-8")
    return file


def shown(frame):
    return frame.locator(".colored-tokens").all_inner_texts()


def test_tokens_of_every_script_side_by_side_in_a_notebook(browser, tmp_path):
    texts = {"en": ("The", " cat", " sat"), "ar": ("سم", "عت", " أن"), "hi": ("मैं", "ने", " सुना")}
    texts |= {"zh": ("我", "听", "说"), "ko": ("내", "가", " 듣"), "ru": ("Я", " слы", "шал"), "ja": ("聞", "い", "た")}
    for code, pieces in texts.items():
        view = figures.token_activations(read(pieces, code), read(pieces[:2], code, "tuned"))
        with visiting(browser, notebook(view, tmp_path)) as visit:
            frame = visit.page.frame_locator("iframe")
            frame.locator(".colored-tokens").nth(2).wait_for()
            plain = [text.replace("\u200b", "").replace("\u00a0", " ") for text in shown(frame)]
            assert plain == ["".join(pieces[:2]), pieces[2], "".join(pieces[:2])]
            direction = frame.locator("#text-0").evaluate("(text) => getComputedStyle(text).direction")
            assert direction == ("rtl" if code == "ar" else "ltr")
            # Scripts differ in their direction; reading a page takes axe-core seconds.
            assert code not in ("en", "ar") or visit.accessibility_faults() == []
            assert (visit.faults, [url for url in visit.requests if url != "about:srcdoc"]) == ([], [])


@pytest.mark.parametrize("width", [390, 1280])
def test_a_token_view_s_frame_holds_both_sides(browser, tmp_path, width):
    pieces = tuple(f" word{i}" for i in range(24))
    view = figures.token_activations(read(pieces), read(pieces, name="tuned"))
    with visiting(browser, notebook(view, tmp_path), width) as visit:
        frame = visit.page.frame_locator("iframe")
        frame.locator(".colored-tokens").nth(3).wait_for()
        heights = frame.locator("html").evaluate("(whole) => [whole.scrollHeight, innerHeight]")
        assert heights[0] <= heights[1], "nothing of it is cut"
        assert heights[1] < 1.6 * frame.locator("main").evaluate("(main) => main.offsetHeight"), "nor much left blank"


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_token_view_is_read_in_both_schemes(browser, tmp_path, scheme):
    with visiting(
        browser, notebook(figures.token_activations(read(("A", "\n", "b"))), tmp_path), scheme=scheme
    ) as visit:
        frame = visit.page.frame_locator("iframe")
        frame.locator(".colored-tokens").nth(1).wait_for()
        page = frame.locator("body").evaluate("(body) => getComputedStyle(body).backgroundColor")
        assert page == ("rgb(21, 24, 28)" if scheme == "dark" else "rgb(255, 255, 255)")
        assert frame.locator(".key b").inner_text().startswith("±")
        assert "A↵" in "".join(shown(frame))
        assert visit.accessibility_faults() == []


def test_a_token_view_s_menu_chooses_the_neuron(browser, tmp_path):
    view = figures.token_activations(read(("The", " cat", " sat")))
    with visiting(browser, notebook(view, tmp_path)) as visit:
        frame = visit.page.frame_locator("iframe")
        colour = "(text) => getComputedStyle(text.querySelector('.colored-tokens > span > span')).backgroundColor"
        text = frame.locator("#text-1")
        frame.locator(".colored-tokens").nth(1).wait_for()
        # The third token has 1 of at most 3 in neuron 0.1, and 2 of at most 2 in neuron 2.7.
        faint = text.evaluate(colour)
        frame.get_by_label("Neuron").select_option("2.7")
        frame.locator("#text-1 .colored-tokens").wait_for()
        assert text.evaluate(colour) == "rgb(127, 191, 123)" != faint


def test_hostile_tokens_do_not_run(browser, tmp_path):
    view = figures.token_activations(read((HOSTILE, " <b>x</b>", "&lt;"), name=HOSTILE))
    with visiting(browser, notebook(view, tmp_path)) as visit:
        frame = visit.page.frame_locator("iframe")
        frame.locator(".colored-tokens").nth(1).wait_for()
        first, second = shown(frame)
        assert first.startswith("</script><script>alert(1)</script><img")
        assert second == "&lt;"
        assert frame.locator("img").count() == 0
        assert visit.faults == []


def test_the_picture_command(browser, tmp_path):
    if picture.browser() is None:
        pytest.skip("no browser on the search path")
    files.write_results(tmp_path / "results.json", made_up())
    command = [sys.executable, "-m", "xlingtox", "picture", tmp_path / "results.json", tmp_path / "new" / "result.png"]
    subprocess.run(command, check=True)
    taken = (tmp_path / "new" / "result.png").read_bytes()
    assert taken.startswith(b"\x89PNG")
    assert (int.from_bytes(taken[16:20]), int.from_bytes(taken[20:24])) == (1400, 760)
    assert 20_000 < len(taken) < 200_000, "a blank page is smaller"


def test_a_picture_of_some_stages(browser, tmp_path):
    if picture.browser() is None:
        pytest.skip("no browser on the search path")
    content = only("localize", "tune", "compare")
    content["model"]["name"] = "another"
    picture.take(StudyResults.of(content), tmp_path / "result.png")
    assert len((tmp_path / "result.png").read_bytes()) > 20_000
    with pytest.raises(ValueError, match="nothing to picture: the study compared nothing"):
        picture.take(StudyResults.of(only("retrieve")), tmp_path / "result.png")


def test_a_picture_without_a_browser(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(OSError, match="no browser was found"):
        picture.take(StudyResults.of(made_up()), tmp_path / "result.png")
    with pytest.raises(OSError, match="took no picture"):
        picture.take(StudyResults.of(made_up()), tmp_path / "result.png", executable="/bin/true")
