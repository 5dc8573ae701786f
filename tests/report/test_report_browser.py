"""The page in a real browser: it loads without a complaint, draws, sorts, filters, and keeps names as names."""

import pytest
from browser import in_a_browser, launched, opened
from report_records import run

from pliant.report import html_text

pytestmark = in_a_browser

HOSTILE = (
    "<script>window.hacked=1</script>\"'><img src=x onerror=window.hacked=1> \u202eright to left\u202c עברית &amp;"
)
SHOWN = HOSTILE.replace("\u202e", "\ufffd").replace("\u202c", "\ufffd")
CBP = ("continual backprop", ({"name": "continual_backprop", "replacement_rate": 0.001},))
REDO = ("ReDo", ({"name": "redo", "tau": 0.1},))
FRESH = ("fresh network per task", ({"name": "fresh_start"},))


def made_up():
    """Two streams and a control, five methods, one of them with a hostile name, one seed that failed."""
    series = ("online_accuracy", "test_accuracy", "past_accuracy", "dead_fraction")
    options = {"names": series, "meta": {"seconds": 4.0, "num_stacked": 2}, "num_tasks": 20}
    records = []
    for name, about in (
        ("digits", {"title": "Digits", "description": "Labels drawn anew."}),
        ("pixels", {"title": "Pixels " + HOSTILE}),
        ("control", {"title": "Same again", "control": True}),
    ):
        stream = {"name": name, "num_tasks": 20, "num_epochs": 2}
        records += run("no protection", start=0.8, end=0.3, stream=stream, about=about, **options)
        records += run(*CBP, start=0.75, end=0.85, stream=stream, about=about, **options)
        records += run(*REDO, start=0.7, end=0.9, stream=stream, about=about, failed=(2,), **options)
        records += run(HOSTILE, ({"name": HOSTILE},), start=0.5, end=0.6, stream=stream, about=about, **options)
        records += run(*FRESH, start=0.6, end=0.6, stream=stream, about=about, **options)
    return records


@pytest.fixture(scope="module")
def browser():
    with launched() as found:
        yield found


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    path = tmp_path_factory.mktemp("page") / "report.html"
    path.write_text(html_text(made_up(), title=HOSTILE, notes=[HOSTILE]), encoding="utf-8")
    return path


@pytest.fixture
def page(browser, path):
    """The page, opened without a network; whatever the browser complains about fails the test."""
    with opened(browser, path) as page:
        yield page


def labels(page, table=0):
    """The names in a table, as they stand."""
    return page.locator("table").nth(table).locator("tbody tr:visible th").all_inner_texts()


def test_every_figure_is_drawn_inside_its_frame(page):
    sizes = page.evaluate("""() => [...document.querySelectorAll("svg.chart")].map(s => {
        const box = s.getBoundingClientRect();
        const out = [...s.querySelectorAll("text")].filter(t => {
            const b = t.getBoundingClientRect();
            return b.left < box.left - 1 || b.right > box.right + 1 || b.top < box.top - 1 || b.bottom > box.bottom + 1;
        }).map(t => t.textContent);
        return [box.width, box.height, s.querySelectorAll("line, polyline, circle").length, out];
    })""")
    assert len(sizes) > 12
    for width, height, num_marks, outside in sizes:
        assert width > 300
        assert height > 100
        assert num_marks > 5
        assert outside == []
    drawings = page.evaluate("[...document.querySelectorAll('svg')].map(s => s.outerHTML).join()")
    assert not any(word in drawings for word in ("NaN", "nan,", ",nan", "Infinity", ",inf"))


def test_a_click_on_a_heading_sorts(page):
    by_rank = labels(page)
    button = page.locator("#leaderboard thead th button", has_text="Digits").first
    button.click()
    values = page.evaluate("""() => {
        const th = document.querySelector("#leaderboard th[aria-sort]"), i = [...th.parentNode.children].indexOf(th);
        return [...document.querySelectorAll("#leaderboard tbody tr")].map(r => r.children[i].dataset.value);
    }""")
    numbers = [float(v) for v in values]
    assert numbers == sorted(numbers, reverse=True)
    assert page.locator("#leaderboard th[aria-sort]").get_attribute("aria-sort") == "descending"
    button.click()
    assert page.locator("#leaderboard th[aria-sort]").get_attribute("aria-sort") == "ascending"
    assert labels(page) != by_rank
    assert sorted(labels(page)) == sorted(by_rank)
    page.locator("#leaderboard thead th button", has_text="method").first.click()
    assert labels(page) == sorted(by_rank, key=str.lower) or len(set(labels(page))) == len(by_rank)


def test_what_has_no_number_stays_at_the_bottom(page):
    """No protection is not compared with itself: it has no probability of improvement."""
    button = page.locator("#leaderboard thead th button", has_text="beats no protection")
    for _ in range(2):
        button.click()
        assert labels(page)[-1] == "no protection"


def test_the_search_filters_tables_and_figures(page):
    chart = page.locator("figure[data-chart]").first
    before = chart.locator("g.curve:visible").count()
    page.fill("#search", "replacement_rate")
    assert labels(page) == ["continual backprop"]
    assert chart.locator("g.curve:visible").count() == 1 < before
    assert page.locator("#count").inner_text() == "1 of 5 methods"
    page.fill("#search", "no such method")
    assert labels(page) == []
    page.click(".reset")
    assert len(labels(page)) == 5
    assert page.locator("#search").input_value() == ""


def test_a_method_can_be_hidden_and_a_stream_chosen(page):
    page.click(".legend button:has-text('ReDo')")
    assert not any("ReDo" in label for label in labels(page))
    assert page.locator("g.curve[data-label='ReDo']:visible").count() == 0
    page.click(".reset")
    page.select_option("#streams", label="Digits")
    shown = page.locator("section[data-stream]:visible h2").all_inner_texts()
    assert shown == ["Digits"]
    assert page.locator("#leaderboard thead th:visible", has_text="Pixels").count() == 0
    assert page.locator("#leaderboard thead th:visible", has_text="Digits").count() == 1


def test_the_pointer_and_the_keys_show_numbers(page):
    chart = page.locator("figure[data-chart]").first
    svg = chart.locator("svg").first
    svg.scroll_into_view_if_needed()
    box = svg.bounding_box()
    page.mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
    tip = chart.locator(".tip")
    assert tip.is_visible()
    assert "task 1" in tip.inner_text()
    assert "±" in tip.inner_text()
    assert "continual backprop" in tip.inner_text()
    svg.focus()
    page.keyboard.press("Home")
    assert tip.inner_text().startswith("task 1\n")
    page.keyboard.press("ArrowRight")
    assert tip.inner_text().startswith("task 2\n")
    page.keyboard.press("End")
    assert tip.inner_text().startswith("task 20\n")
    page.keyboard.press("Escape")
    assert not tip.is_visible()


def test_a_number_leads_to_its_run(page):
    link = page.locator("#leaderboard tbody tr", has_text="continual backprop").locator("td a.run").first
    target = link.get_attribute("href")
    link.click()
    details = page.locator(target)
    assert details.get_attribute("open") is not None
    assert "replacement_rate=0.001" in details.inner_text()
    assert "abc" in details.inner_text()  # the commit


def test_hostile_names_are_names(page):
    assert page.evaluate("window.hacked") is None
    assert page.locator("img").count() == 0
    assert page.locator("script:not([type])").count() == 1
    assert SHOWN in labels(page)
    assert page.title() == SHOWN
    svg = page.locator("figure[data-chart] svg").first
    svg.focus()
    page.keyboard.press("Home")
    tip = page.locator("figure[data-chart] .tip").first
    assert SHOWN in tip.inner_text()
    page.click(".legend button:has-text('window.hacked')")
    assert SHOWN not in labels(page)
    svg.focus()
    page.keyboard.press("Home")
    assert SHOWN not in tip.inner_text()


@pytest.mark.parametrize("width", [360, 1280])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_it_fits_and_can_be_read_in_light_and_dark(browser, path, width, scheme):
    context = browser.new_context(viewport={"width": width, "height": 800}, color_scheme=scheme)
    page = context.new_page()
    page.goto(path.as_uri())
    # Nothing but tables and wide figures in their own frames scrolls sideways.
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    contrast = page.evaluate("""() => {
        const light = c => { const v = c.match(/[\\d.]+/g).slice(0, 3).map(x => x / 255)
            .map(x => x <= 0.03928 ? x / 12.92 : ((x + 0.055) / 1.055) ** 2.4);
            return 0.2126 * v[0] + 0.7152 * v[1] + 0.0722 * v[2]; };
        const paper = light(getComputedStyle(document.body).backgroundColor);
        return ["body", ".facts", "tbody td", "thead th", ".good, .bad"].map(s => {
            const ink = light(getComputedStyle(document.querySelector(s)).color);
            return (Math.max(ink, paper) + 0.05) / (Math.min(ink, paper) + 0.05);
        });
    }""")
    assert min(contrast) >= 4.5
    context.close()


def test_it_is_whole_without_scripts(browser, path):
    context = browser.new_context(java_script_enabled=False)
    page = context.new_page()
    page.goto(path.as_uri())
    assert page.locator("#search").is_hidden()
    assert page.locator("#leaderboard tbody tr").count() == 5
    assert page.locator("svg.chart").count() > 12
    context.close()
