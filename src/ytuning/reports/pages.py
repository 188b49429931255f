"""Templates -> HTML that needs nothing else: no script, no network; each page's own policy forbids both."""

from __future__ import annotations

from typing import Any

import jinja2

__all__ = ["render"]

# Characters that HTML forbids or reads as something else, each as one that can be seen.
VISIBLE = {code: 0x2400 + code for code in range(32) if chr(code) not in "\t\n"} | {127: 0x2421}
VISIBLE |= dict.fromkeys((*range(0x80, 0xA0), *range(0xD800, 0xE000), 0xFFFE, 0xFFFF), 0xFFFD)


def render(template: str, content: dict[str, Any]) -> str:
    """A page of the folder ``templates``; what is put into it is escaped, and a name that is missing is an error."""
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("ytuning.reports"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=_visible,
    )
    return environment.get_template(template).render(content)


def _visible(value: Any) -> Any:
    """What is put into the page, characters that it cannot hold made visible."""
    return value.translate(VISIBLE) if isinstance(value, str) else value
