"""The explorer of samples in a real browser: cards, filters, search, pages and the keyboard."""

import pytest

from web.folders import pair, sample, write_run
from web.seen import rows

expect = pytest.importorskip("playwright.sync_api").expect


def titles(page):
    return [card.inner_text().split(" step")[0] for card in page.locator("article h3").all()]


def test_a_pair_is_shown_side_by_side(explore, tmp_path):
    page = explore(write_run(tmp_path / "run", samples=[pair(3, 7, chosen="the good one", rejected="the bad one")]))
    card = page.get_by_role("article")
    expect(card).to_have_count(1)
    for text in ("step 3, row 7", "Q: problem 7", "context of 7", "by teacher · reward 1 · log-ratio", "3 tokens"):
        expect(card).to_contain_text(text)
    chosen, rejected = (card.locator(f".{name}").bounding_box() for name in ("chosen", "rejected"))
    assert chosen["y"] == rejected["y"] and chosen["x"] + chosen["width"] <= rejected["x"]
    assert card.locator(".chosen pre").inner_text() == "the good one"
    assert card.locator(".rejected pre").inner_text() == "the bad one"
    expect(page.locator("#explorer-tokens")).to_contain_text("no log-ratio by token")


@pytest.fixture
def many(tmp_path):
    """Forty-five pairs: every third flipped, every fifth saturated, one leaking, the last three longest (5% of 45)."""
    return write_run(
        tmp_path / "many",
        samples=[
            pair(
                n,
                n,
                chosen="see the reference solution" if n == 8 else f"text {n}" + " more" * (9 if n >= 42 else 0),
                swapped=n % 3 == 0,
                margin=5.0 if n % 5 == 0 else n / 100,
            )
            for n in range(45)
        ],
    )


def test_filters_search_order_and_pages(explore, many):
    page = explore(many)
    status = page.get_by_role("status")
    expect(status).to_have_text("45 pairs of 45, showing 1\N{EN DASH}10.")
    counts = [
        page.locator(f"[data-count={flag}]").inner_text() for flag in ("flipped", "leaking", "saturated", "longest")
    ]
    assert counts == ["15", "1", "9", "3"]

    page.get_by_label("Reward flipped").check()
    page.get_by_label("Saturated").check()
    expect(status).to_have_text("3 pairs of 45, showing 1\N{EN DASH}3.")  # 0, 15 and 30
    assert titles(page) == ["Pair 1", "Pair 16", "Pair 31"]
    page.get_by_label("Reward flipped").uncheck()
    page.get_by_label("Saturated").uncheck()

    page.get_by_label("Search").fill("REFERENCE Sol")
    expect(status).to_have_text("1 pair of 45, showing 1\N{EN DASH}1.")
    assert titles(page) == ["Pair 9"]
    page.get_by_label("Search").fill("no such text")
    expect(status).to_contain_text("No pairs match")
    page.get_by_label("Search").fill("")
    expect(page.get_by_role("article")).to_have_count(10)

    page.get_by_label("Order").select_option("longest first")
    assert titles(page)[:3] == ["Pair 43", "Pair 44", "Pair 45"]
    page.get_by_label("Order").select_option("largest margin first")
    assert titles(page)[0] == "Pair 1"

    page.get_by_label("Page", exact=True).fill("5")
    page.keyboard.press("Enter")
    expect(page.get_by_role("article")).to_have_count(5)


def test_the_keyboard_is_enough(explore, many):
    """From the search field by Tab through the controls; Space ticks, Enter turns pages, the focus is always seen."""
    page = explore(many)
    page.keyboard.press("Tab")
    expect(page.get_by_text("Skip to content")).to_be_focused()
    page.keyboard.press("Enter")
    expect(page.locator("main")).to_be_focused()
    page.get_by_label("Search").focus()
    page.keyboard.type("text")
    page.keyboard.press("Tab")
    expect(page.get_by_label("Order")).to_be_focused()
    page.keyboard.press("Tab")
    expect(page.get_by_label("Reward flipped")).to_be_focused()
    outline = page.evaluate("getComputedStyle(document.activeElement).outlineStyle")
    assert outline == "solid"
    page.keyboard.press("Space")
    expect(page.get_by_role("status")).to_have_text("15 pairs of 45, showing 1\N{EN DASH}10.")
    next_button = page.get_by_role("group", name="Pages", exact=True).get_by_role("button", name="Next")
    next_button.focus()
    page.keyboard.press("Enter")
    expect(page.get_by_role("article")).to_have_count(5)
    expect(next_button).to_be_focused()
    assert next_button.get_attribute("aria-disabled") == "true"
    page.keyboard.press("Enter")  # at the end: nothing happens
    expect(page.get_by_role("article")).to_have_count(5)


def test_a_search_that_is_still_to_come_does_not_turn_the_page_back(explore, many):
    """Typing, ticking and paging within the moment that the search waits for more letters."""
    page = explore(many)
    page.evaluate("""() => {
        const search = document.getElementById("explorer-search");
        search.value = "problem";
        search.dispatchEvent(new Event("input", { bubbles: true }));
        document.querySelector("[name=flag][value=flipped]").click();
        document.querySelector("[data-move='1']").click();
    }""")
    page.wait_for_timeout(300)
    expect(page.get_by_label("Page", exact=True)).to_have_value("2")


def test_methods_without_pairs_show_their_samples(explore, tmp_path):
    page = explore(write_run(tmp_path / "run", method="grpo", samples=[sample(text="forty-two")]))
    expect(page.get_by_role("heading", name="Samples")).to_be_visible()
    card = page.get_by_role("article")
    expect(card).to_contain_text("advantage")
    expect(card.locator(".sample pre")).to_have_text("forty-two")


def test_samples_beside_pairs_are_called_samples(explore, tmp_path):
    """PBSD records a sample that is in no pair by itself."""
    page = explore(write_run(tmp_path / "run", samples=[pair(1, 7), sample(1, 8, text="forty-two")]))
    expect(page.get_by_role("status")).to_contain_text("2 records of 2")
    cards = page.get_by_role("article")
    expect(cards.nth(0).get_by_role("heading", level=3)).to_contain_text("Pair 1")
    expect(cards.nth(1).get_by_role("heading", level=3)).to_contain_text("Sample 2")
    expect(cards.nth(1).locator(".sample pre")).to_have_text("forty-two")


def test_the_run_picker_changes_the_explorer(explore, runs):
    page = explore(*runs)
    expect(page.get_by_role("status")).to_contain_text("3 pairs of 3")
    page.locator("#explorer-run").select_option("c")
    expect(page.get_by_role("status")).to_contain_text("1 sample of 1")


def test_tokens_are_coloured_by_their_log_ratio(explore, tmp_path):
    """Levels begin at .1, .5, 1 and 2 nats."""
    record = pair(chosen="good day!")
    record["chosen"] |= {"token_texts": ["go", "od", " day", "!"], "token_log_ratios": [0.05, 0.6, -1.5, -2.5]}
    page = explore(write_run(tmp_path / "run", samples=[record]))
    card = page.get_by_role("article")
    tokens = card.locator(".chosen .token").all()
    assert [token.inner_text() for token in tokens] == ["go", "od", " day", "!"]
    assert [token.get_attribute("class").split()[1] for token in tokens] == ["even", "plus-2", "minus-3", "minus-4"]
    colors = [token.evaluate("node => getComputedStyle(node).backgroundColor") for token in tokens]
    assert len(set(colors)) == 4
    card.get_by_text("Tokens as a table").click()
    expect(card.locator("tbody tr")).to_have_count(4)
    assert rows(page, "Log-ratio by token")[1] == ["2", '"od"', "0.6"]
    expect(page.locator("#explorer-tokens")).to_contain_text("the student finds it likelier")


def test_tokens_that_are_not_the_text(explore, tmp_path):
    """A stop token, a character of two tokens, one of two UTF-16 units, and a ratio that is not known."""
    record = pair(chosen="go 👩é!", rejected="plain")
    pieces = ["go", " 👩", "\ufffd", "\ufffd", "!", "</s>"]
    record["chosen"] |= {"token_texts": pieces, "token_log_ratios": [0.123, -1.5, None, 2.25, 0, 0]}
    page = explore(write_run(tmp_path / "run", samples=[record]))
    tokens = page.locator(".chosen .token").all()
    assert [token.inner_text() for token in tokens] == pieces
    titles = [token.get_attribute("title") for token in tokens]
    assert titles[:4] == [f"log-ratio {text}" for text in ("0.123", "\N{MINUS SIGN}1.5", "\N{EN DASH}", "2.25")]
    expect(page.locator(".rejected pre")).to_have_text("plain")


def test_a_very_long_token_is_cut_like_a_text(explore, tmp_path):
    """Its last character before the cut, 2000 from the start, is half of a surrogate pair and goes."""
    record = pair(chosen="long")
    long = "x" * 1998 + "👩" + "y" * 998_000
    record["chosen"] |= {"token_texts": ["a", long, "b"], "token_log_ratios": [0.05, 0.6, -1.5]}
    page = explore(write_run(tmp_path / "run", samples=[record]))
    card = page.locator(".chosen")
    assert card.locator("pre").inner_text() == "a" + "x" * 1998
    card.get_by_text("Tokens as a table").click()
    expect(card.locator("tbody tr")).to_have_count(3)
    assert rows(page, "Log-ratio by token")[1] == ["2", '"' + "x" * 100 + '"…', "0.6"]
    card.get_by_role("button", name="Show all 3 tokens, 1,000,002 characters").click()
    assert card.locator("pre").evaluate("node => node.textContent") == f"a{long}b"


def test_thinned_pairs_are_said_to_be(explore, many):
    page = explore(many, max_pairs=20)
    expect(page.locator("#explorer-share")).to_contain_text("20 of the run's 45 pairs, evenly spaced")
    expect(page.get_by_role("status")).to_contain_text("20 pairs of 20")
    expect(page.locator("#explorer-share")).to_contain_text("--max_pairs takes more")
    page = explore(many, max_bytes=1000)
    expect(page.locator("#explorer-share")).to_contain_text("--max_megabytes takes more")


def test_the_document_stays_small_with_ten_thousand_pairs(explore, tmp_path):
    page = explore(write_run(tmp_path / "run", samples=[pair(n, n) for n in range(10_000)]))
    expect(page.get_by_role("status")).to_have_text("10,000 pairs of 10,000, showing 1\N{EN DASH}10.")
    assert page.evaluate("document.querySelectorAll('*').length") < 3000
    page.get_by_label("Search").fill("problem 9998")
    expect(page.get_by_role("status")).to_have_text("1 pair of 10,000, showing 1\N{EN DASH}1.")
