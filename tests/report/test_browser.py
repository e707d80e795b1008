"""The page in headless Chromium, as wide as a desk's screen and a telephone's, light and dark, with screenshots."""

import pytest

pytestmark = pytest.mark.browser
WIDE = "[...document.querySelectorAll('table')].filter(e => e.getBoundingClientRect().right > innerWidth + 1).length"
BROKEN = "[...document.images].filter(image => !image.complete || !image.naturalWidth).length"
SHOWN = "[...document.querySelectorAll('#table1 th.first[scope=colgroup]:not([hidden])')].length"


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 390])
def test_the_page_works_offline_at_every_width(written, chromium, width, scheme):
    page, said, asked = chromium.new_page(viewport={"width": width, "height": 844}, color_scheme=scheme), [], []
    for event in ("console", "pageerror", "requestfailed"):
        page.on(event, lambda what: said.append(str(what)))
    page.on("request", lambda request: asked.append(request.url))
    page.goto((written / "index.html").as_uri())
    page.screenshot(path=written / f"{width}-{scheme}.png", full_page=True)
    assert not said and all(url.startswith((written.as_uri(), "data:")) for url in asked)
    assert any(url.endswith("overview.webp") for url in asked) and page.evaluate(BROKEN) == 0
    assert page.evaluate(WIDE) == 0 and page.evaluate("document.documentElement.scrollWidth") <= width
    assert page.evaluate(SHOWN) == (1 if width < 600 else 4)
    cut, before = "getComputedStyle(document.querySelector('.pair .cell + .cell')).clipPath", "50%"
    assert before in page.evaluate(cut)
    page.locator("[type=range]").press("ArrowLeft")
    assert "51%" in page.evaluate(cut)
    page.locator("#claims a").first.press("Enter")
    assert page.locator("#C1").is_visible() and not page.locator("#C2").is_visible()
    page.close()
