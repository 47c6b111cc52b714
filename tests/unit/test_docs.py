"""The documentation is true where that can be tested: examples run, descriptions are valid, it builds offline."""

import re
import socket
import sys
from html.parser import HTMLParser
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from orchestrator.cli.teaching import EXAMPLES
from orchestrator.search.space.distributions import KINDS
from orchestrator.search.study.find import find_study
from orchestrator.search.study.keys import all_keys
from workloads.config.load import load_config
from workloads.data.sources import SOURCES
from workloads.models.build import BUILDERS, CLASSES

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"


def blocks(language: str) -> list[Any]:
    """Code blocks of all pages, each with its page and the heading above it."""
    found = []
    for page in sorted(DOCS.glob("*.md")):
        text = page.read_text()
        for match in re.finditer(rf"^```{language}\n(.*?)^```", text, flags=re.MULTILINE | re.DOTALL):
            heading = re.findall(r"^#+ (.*)", text[: match.start()], flags=re.MULTILINE)[-1]
            found.append(pytest.param(match[1], id=f"{page.stem}: {heading}"))
    return found


@pytest.mark.parametrize("code", [block for block in blocks("python") if str(block.id).startswith("extending")])
def test_an_example_of_adding_something_runs(code: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "assert " in code
    registries: tuple[dict[Any, Any], ...] = (BUILDERS, CLASSES, SOURCES, KINDS)
    before = [dict(registry) for registry in registries]
    # Classes of an example look their module up by name.
    module = ModuleType("example")
    monkeypatch.setitem(sys.modules, "example", module)
    try:
        exec(compile(code, "example", "exec"), vars(module))
    finally:
        for registry, kept in zip(registries, before, strict=True):
            registry.clear()
            registry.update(kept)


@pytest.mark.parametrize("text", blocks("yaml"))
def test_a_description_is_valid(text: str, tmp_path: Path) -> None:
    file = tmp_path / "described.yaml"
    file.write_text(text)
    if (study := find_study(str(file), [])) is not None:
        assert study.base_raw
    else:
        load_config(str(file))


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The documentation as `make docs` builds it, without a network; a warning is an error."""
    from mkdocs.commands.build import build
    from mkdocs.config import load_config as load_mkdocs

    folder = tmp_path_factory.mktemp("site")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(socket.socket, "connect", lambda *_: pytest.fail("the build asks the network"))
        build(load_mkdocs(str(ROOT / "mkdocs.yml"), site_dir=str(folder), strict=True))
    return folder


class _Needed(HTMLParser):
    """What a browser fetches to show a page."""

    def __init__(self) -> None:
        super().__init__()
        self.urls: list[str] = []
        self.text = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        self.urls += [str(given["src"])] if given.get("src") else []
        self.urls += [str(given["href"])] if tag == "link" and given.get("href") else []

    def handle_data(self, data: str) -> None:
        self.text += data


def read_page(file: Path) -> _Needed:
    parser = _Needed()
    parser.feed(file.read_text())
    return parser


def test_the_documentation_builds_and_needs_no_network(site: Path) -> None:
    pages = sorted(site.rglob("*.html"))
    assert {page.stem for page in pages} >= {page.stem for page in DOCS.glob("*.md")}
    for page in pages:
        assert [url for url in read_page(page).urls if url.startswith(("http:", "https:", "//"))] == [], page


def test_the_reference_is_whole(site: Path) -> None:
    """Every field of every class, every command, every error: by the classes and commands themselves."""
    configuration = read_page(site / "reference" / "configuration.html").text
    for keys in all_keys().values():
        for key in keys:
            assert " ".join(key.meaning.replace("`", "").split()[:6]) in " ".join(configuration.split()), key.path
    said = " ".join(read_page(site / "reference" / "commands.html").text.split())
    for command, lines in EXAMPLES.items():
        assert f"rememe {command}" in said
        assert all(line in said for line in lines)
    errors = " ".join(read_page(site / "reference" / "errors.html").text.split())
    for sentence in (
        "no preset or file is called …",
        "holds no ensemble",
        "is not a multiple of execution.workers_per_expert",
        "checkpoints are written, run the same command again to continue",
    ):
        assert sentence in errors


def test_the_pictures_for_a_start_are_written(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    (code,) = (param.values[0] for param in blocks("python") if str(param.id).startswith("start"))
    exec(code, {"__name__": "start"})
    assert len(list((tmp_path / "photos").glob("*/*.png"))) == 10_000
    assert len(list((tmp_path / "photos").iterdir())) == 10
