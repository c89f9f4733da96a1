"""Tests of the site that `make docs` builds: it loads nothing from elsewhere, its links lead somewhere, it fits a phone."""

from __future__ import annotations

import functools
import http.server
import importlib.util
import os
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest
from conftest import make_once
from support.commands import ROOT
from support.pages import DOCS
from support.servers import MUST_HAVE

import emotion_batch
from benchmarks.browser import Tab
from emotion_batch.cli.options import make_parsers
from emotion_batch.errors import Status

if not MUST_HAVE:
    pytest.importorskip("mkdocs", reason="mkdocs is not installed")
_SPEC = importlib.util.spec_from_file_location("hooks", DOCS / "hooks.py")
assert _SPEC is not None and _SPEC.loader is not None
HOOKS = importlib.util.module_from_spec(_SPEC)
_SPEC.loader.exec_module(HOOKS)
# Links that a browser follows only if a person asks for it.
_FOLLOWED = {"canonical", "next", "prev", "alternate"}


class Parts(HTMLParser):
    """The addresses that a page loads, those that it links to, and its anchors."""

    def __init__(self, page: Path) -> None:
        super().__init__()
        self.loaded: list[str] = []
        self.links: list[str] = []
        self.ids: set[str] = set()
        self.feed(page.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = {key: value or "" for key, value in attrs}
        self.ids |= {found[key] for key in ("id", "name") if key in found}
        if tag == "a":
            self.links.append(found.get("href", ""))
        elif tag == "link":
            if not set(found.get("rel", "").split()) & _FOLLOWED:
                self.loaded.append(found["href"])
        else:
            self.loaded += [found[key] for key in ("src", "srcset", "data", "poster") if key in found]


@pytest.fixture(scope="session")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The site, built strictly: a warning fails it."""

    def make(folder: Path) -> None:
        command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", folder]
        # The theme prints an announcement about its next major version.
        environment = {**os.environ, "NO_MKDOCS_2_WARNING": "1"}
        done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr

    return make_once(tmp_path_factory, "site", make)


def pages_of(site: Path) -> list[Path]:
    return [page for page in sorted(site.rglob("*.html")) if page.name != "404.html"]


def test_no_page_loads_anything_from_elsewhere(site: Path) -> None:
    """Scripts, styles, pictures and fonts are files of the site, also those that a style sheet names."""
    pages = pages_of(site)
    assert len(pages) > 20
    found = {address for page in site.rglob("*.html") for address in Parts(page).loaded if "//" in address}
    for sheet in site.rglob("*.css"):
        text = sheet.read_text(encoding="utf-8")
        found |= {
            one for one in re.findall(r"(?:url\(|@import\s*)[\"']?([^\"')]+)", text) if one.startswith(("http", "//"))
        }
    assert found == set()
    assert not [path for path in site.rglob("*") if path.suffix in (".woff", ".woff2", ".ttf")]


def test_no_link_is_dead(site: Path) -> None:
    """Each link within the site leads to a page, and to an anchor that is there."""
    parts = {page: Parts(page) for page in pages_of(site)}
    dead = []
    for page, found in parts.items():
        for link in found.links:
            address = urlsplit(link)
            if address.scheme or not link:
                continue
            target = page.parent / unquote(address.path) if address.path else page
            target = Path(os.path.normpath(target / "index.html" if target.is_dir() else target))
            is_there = target.is_file() and (
                not address.fragment or target not in parts or (unquote(address.fragment) in parts[target].ids)
            )
            if not is_there:
                dead.append((str(page.relative_to(site)), link))
    assert dead == []


def test_no_link_of_the_repository_is_dead() -> None:
    """Each relative link of a Markdown file leads to a file, so that the pages can be read without the site."""
    dead = []
    for file in (*ROOT.glob("*.md"), *DOCS.rglob("*.md"), ROOT / "models" / "README.md"):
        for to in re.findall(r"\]\(([^()\s#:]+)(?:#[^()\s]*)?\)", file.read_text(encoding="utf-8")):
            target = Path(os.path.normpath(file.parent / to))
            if not target.exists():
                dead.append((file.name, to))
    assert dead == []


@pytest.mark.parametrize(
    ("name", "text", "moved"),
    [
        pytest.param("README.md", "[a](docs/faq.md#gpu)", "[a](faq.md#gpu)", id="a page"),
        pytest.param("README.md", "![a](docs/way.svg)", "![a](way.svg)", id="a picture"),
        pytest.param("README.md", "[a](CHANGELOG.md)", "[a](changes.md)", id="a file that is a page"),
        pytest.param("models/README.md", "[a](../docs/faq.md)", "[a](../faq.md)", id="from a page in a folder"),
        pytest.param("docs/faq.md", "[a](../models/README.md)", "[a](explanation/models.md)", id="from docs to a file"),
        pytest.param("docs/how-to/a.md", "[a](../faq.md#b)", "[a](../faq.md#b)", id="within docs"),
        pytest.param("README.md", "[a](LICENSE)", "a (`LICENSE`)", id="a file that is no page"),
        pytest.param("README.md", "[a](https://b.example/c.md)", "[a](https://b.example/c.md)", id="another host"),
        pytest.param("README.md", "[a](#b)", "[a](#b)", id="the same page"),
    ],
)
def test_links_of_the_repository_lead_to_pages(name: str, text: str, moved: str) -> None:
    """What is a link in a file of the repository is the same link from its page of the site."""
    assert HOOKS.move_links(text, name, HOOKS.PAGES.get(name) or name.removeprefix("docs/")) == moved


def test_the_reference_of_commands_has_all_of_them(site: Path) -> None:
    """Each command has a heading, and each option of it stands below that."""
    text = (site / "reference" / "commands" / "index.html").read_text(encoding="utf-8")
    _, parsers, _ = make_parsers()
    sections = dict(re.findall(r'<h2 id="([\w-]+)">(.*?)(?=<h2 |</article>)', text, re.DOTALL))
    for name, parser in parsers.items():
        for option in parser._option_string_actions:
            assert f"<code>{option}" in sections[name], (name, option)


def test_the_reference_of_python_has_all_public_names(site: Path) -> None:
    """Each name that the package offers has its place, with its words."""
    ids = Parts(site / "reference" / "python" / "index.html").ids
    assert [name for name in emotion_batch.__all__ if f"emotion_batch.{name}" not in ids] == []


def test_the_page_of_statuses_has_all_of_them() -> None:
    """The table of statuses is the closed list, in any order."""
    text = (DOCS / "reference" / "statuses.md").read_text()
    assert sorted(re.findall(r"^\| `(\w+)` \|", text, re.MULTILINE)) == sorted(Status)


def test_the_readme_is_short() -> None:
    """README has at most 160 lines; the pages have the rest."""
    assert len((ROOT / "README.md").read_text().splitlines()) <= 160


class _Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture(scope="module")
def address(site: Path) -> Iterator[str]:
    """The site on loopback, because search does not work in a file."""
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(_Quiet, directory=site)) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}/"
        server.shutdown()
        thread.join()


@pytest.mark.parametrize("step", [pytest.param(5, id="some"), pytest.param(1, id="all", marks=pytest.mark.torture)])
def test_pages_fit_a_phone_and_a_screen(step: int, site: Path, address: str, tab: Tab) -> None:
    """No page scrolls sideways at 400 or 1280 pixels, asks another host for anything, or says an error."""
    wide = []
    for page in pages_of(site)[::step]:
        name = "" if page.parent == site else f"{page.parent.relative_to(site)}/"
        for width in (1280, 400):
            tab.resize(width)
            tab.open(address + name)
            if tab.evaluate("document.documentElement.scrollWidth") > width:
                wide.append((name, width))
    assert wide == []
    assert {url for url in tab.requested if not url.startswith((address, "data:", "blob:"))} == set()
    assert [said for said in tab.said if said.startswith(("error", "exception"))] == []
