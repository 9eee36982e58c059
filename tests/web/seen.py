"""What a person sees on the page."""

import pytest

expect = pytest.importorskip("playwright.sync_api").expect


def rows(page, caption):
    """The texts of a table's body, by its caption."""
    region = page.get_by_role("region", name=caption, exact=True)
    return [[cell.inner_text() for cell in row.locator("th, td").all()] for row in region.locator("tbody tr").all()]


def numbers(page, chart):
    """Opens the table behind a chart and returns its body."""
    figure = page.locator(f"figure[data-chart={chart}]")
    if figure.locator("details[open]").count() == 0:
        figure.get_by_text("Numbers behind this chart").click()
    expect(figure.locator("tbody tr").first).to_be_visible()
    return [[cell.inner_text() for cell in row.locator("th, td").all()] for row in figure.locator("tbody tr").all()]


def drawn(page, chart):
    figure = page.locator(f"figure[data-chart={chart}]")
    figure.scroll_into_view_if_needed()
    expect(figure.locator("svg.main-svg").first).to_be_visible()
    return figure
