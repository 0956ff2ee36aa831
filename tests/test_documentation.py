"""Every example of the documentation runs, and every link within it leads somewhere.

Pages that need a framework are run by `tests/frameworks/test_documentation.py`.
"""

import re
from pathlib import Path

import pytest
from sybil.example import SybilFailure

from tests.pages import PAGES, needs_framework, run


@pytest.mark.parametrize("page", [page for page in PAGES if not needs_framework(page)], ids=lambda page: page.name)
def test_the_examples_of_a_page_run(page: Path) -> None:
    assert run(page) == page.read_text().count("```python\n")


WRONG: dict[str, type[Exception]] = {
    "assert 1 == 2": AssertionError,
    ">>> 1 + 1\n3\n": SybilFailure,
    "import no_such_module": ModuleNotFoundError,
}


@pytest.mark.parametrize(("block", "error"), WRONG.items())
def test_an_example_that_is_wrong_is_seen(tmp_path: Path, block: str, error: type[Exception]) -> None:
    page = tmp_path / "page.md"
    page.write_text(f"# Page\n\n```python\n{block}\n```\n")
    with pytest.raises(error):
        run(page)


def broken_links(page: Path) -> list[str]:
    """Return the targets of a page's links and pictures that are not there; addresses elsewhere are not followed."""
    text = re.sub(r"```.*?```", "", page.read_text(), flags=re.DOTALL)
    targets = re.findall(r"\]\(([^)\s]+)\)", text)
    return [target for target in targets if "://" not in target and not leads_somewhere(page, target)]


def leads_somewhere(page: Path, target: str) -> bool:
    path, _, anchor = target.partition("#")
    aim = (page.parent / path) if path else page
    if not aim.exists() or not anchor:
        return aim.exists()
    headings = re.findall(r"^#+ (.*)$", aim.read_text(), flags=re.MULTILINE)
    return anchor in {re.sub(r"[^\w\- ]", "", heading).strip().lower().replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    assert broken_links(page) == []


def test_a_broken_link_is_seen(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("# A page\n[a](page.md#a-page) [b](#a-page) [c](gone.md) [d](#gone) ![e](gone.png)\n")
    assert broken_links(page) == ["gone.md", "#gone", "gone.png"]
