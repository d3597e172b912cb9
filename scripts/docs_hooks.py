"""Hook of the documentation build: cross-reference roles of docstrings become plain code.

Docstrings name classes and functions as ``:class:`~package.Name```, which editors and Python's own help show
well enough; Markdown would print the role.
"""

import re

_ROLE = re.compile(r":(?:attr|class|data|exc|func|meth|mod):<code>(~?)([\w.]+)</code>")


def on_page_content(html: str, **_: object) -> str:
    """Replaces the roles in the HTML of a page; ``~`` keeps the last part of the name only."""
    return _ROLE.sub(
        lambda match: f"<code>{match[2].rsplit('.', 1)[-1] if match[1] else match[2]}</code>", html
    )
