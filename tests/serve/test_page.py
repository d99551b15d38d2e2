"""The page at ``/``: it loads nothing from elsewhere, and chats in a real browser, where there is one."""

from __future__ import annotations

from html.parser import HTMLParser

import httpx
import pytest

from tests.serve.browser import BROWSER, Page
from tests.serve.running import running, tiny_model

needs_browser = pytest.mark.skipif(BROWSER is None, reason="no Chromium on this machine")


class Sources(HTMLParser):
    """Collects ids, addresses, and what the content policy would not run."""

    def __init__(self) -> None:
        super().__init__()
        self.ids, self.addresses, self.inline = [], [], []

    def handle_starttag(self, tag, attrs):
        values = dict(attrs)
        self.ids += [values["id"]] if "id" in values else []
        self.addresses += [values[name] for name in ("src", "href", "action") if name in values]
        self.inline += [name for name in values if name.startswith("on") or name == "style"]
        self.inline += ["script"] if tag == "script" and "src" not in values else []


def test_page_has_its_own_files_only(server):
    reply = httpx.get(server.url)
    policy = reply.headers["content-security-policy"]
    assert "default-src 'none'" in policy and "unsafe" not in policy and "http" not in policy
    page = Sources()
    page.feed(reply.text)
    assert page.inline == [] and sorted(page.addresses) == ["/page.css", "/page.js"]
    script = httpx.get(f"{server.url}/page.js").text
    assert "http" not in script and "innerHTML" not in script
    assert all(f'"{name}"' in script or f"#{name}" in script for name in page.ids if name != "settings")
    assert "url(" not in httpx.get(f"{server.url}/page.css").text


@pytest.fixture
def page(server, tmp_path):
    with Page(tmp_path / "profile") as page:
        page.command("Page.navigate", url=server.url)
        page.until("document.querySelectorAll('#model option').length == 1")
        yield page


def send(page, text):
    page.run(f"find('prompt').value = {text!r}; find('send').click()")


@needs_browser
def test_browser_chats(page, reference):
    page.run("find('max_tokens').value = 12; find('system').value = 'be brief'")
    messages = [{"role": "system", "content": "be brief"}]
    for number, text in enumerate(("the <b>cat</b> sat", "on a mat"), start=1):
        send(page, text)
        page.until(f"document.querySelectorAll('.facts').length == {number}")
        messages.append({"role": "user", "content": text})
        expected = reference.generate(messages, max_tokens=12).text
        messages.append({"role": "assistant", "content": expected})
        shown = page.run("[...document.querySelectorAll('.turn')].map((turn) => turn.textContent)")
        assert shown == [message["content"] for message in messages[1:]]
    facts = page.run("[...document.querySelectorAll('.facts')].at(-1).textContent")
    assert "+ 12 tokens" in facts and "cached" in facts and "tokens/s" in facts and "exact" in facts
    page.run("find('clear').click()")
    assert page.run("find('chat').children.length") == 0
    assert page.complaints == []


@needs_browser
def test_browser_stops_an_answer(tiny, tmp_path):
    from tests.serve.test_behavior import Slow, until

    model = Slow(tiny_model(tiny))
    with running({"m": model}) as server, Page(tmp_path / "profile") as page:
        page.command("Page.navigate", url=server.url)
        page.until("document.querySelectorAll('#model option').length == 1")
        page.run("find('max_tokens').value = 200")
        send(page, "the cat sat")
        page.until("document.querySelectorAll('.assistant').length == 1")
        assert page.run("[find('send').hidden, find('stop').hidden]") == [True, False]
        page.run("find('stop').click()")
        page.until("[...document.querySelectorAll('.facts')].some((each) => each.textContent == 'stopped')")
        until(lambda: model.closed == 1)
        assert page.run("[find('send').hidden, find('stop').hidden]") == [False, True]
        assert model.steps < 100 and page.complaints == []


@needs_browser
def test_browser_shows_errors(page):
    page.run("find('temperature').value = -1")
    send(page, "the cat sat")
    page.until("document.querySelectorAll('.error').length == 1")
    assert page.run("document.querySelector('.error').textContent").startswith("temperature is -1")
    assert page.run("find('prompt').value") == "the cat sat"
