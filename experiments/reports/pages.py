"""Pages: templates to HTML that stands alone, with pictures inside."""

from __future__ import annotations

import base64
from pathlib import Path
from typing import Any

import jinja2

__all__ = ["embedded", "render"]


def render(template: str, **values: Any) -> str:
    """Fill a template of this folder; everything that is not marked safe is escaped."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template(template).render(**values)


def embedded(content: bytes, media: str = "image/png") -> str:
    """The address under which a page shows a picture that it holds itself."""
    return f"data:{media};base64,{base64.b64encode(content).decode('ascii')}"
