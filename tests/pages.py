"""The pages of the documentation: which there are, which need a framework, and how their examples are run."""

import re
from pathlib import Path

from sybil.document import Document
from sybil.parsers.markdown import PythonCodeBlockParser

ROOT = Path(__file__).parent.parent
PAGES = [*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")]

_FRAMEWORK = re.compile(
    r"^(?:>>> )?(?:import|from) (?:gpureg\.)?(?:torch|keras|tensorflow|tf_slim|jax)\b", re.MULTILINE
)


def needs_framework(page: Path) -> bool:
    """Return whether a page's examples import what only the environment with all frameworks has."""
    return _FRAMEWORK.search(page.read_text()) is not None


def run(page: Path) -> int:
    """Run the Python blocks of a page, one after another in one namespace, and return how many there were."""
    document = Document.parse(str(page), PythonCodeBlockParser())
    examples = list(document.examples())
    for example in examples:
        example.evaluate()
    return len(examples)
