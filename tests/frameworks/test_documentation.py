"""The examples of the pages that need a framework."""

from pathlib import Path

import pytest

from tests.pages import PAGES, needs_framework, run


@pytest.mark.parametrize("page", [page for page in PAGES if needs_framework(page)], ids=lambda page: page.name)
def test_the_examples_of_a_page_run(page: Path) -> None:
    assert run(page) == page.read_text().count("```python\n")
