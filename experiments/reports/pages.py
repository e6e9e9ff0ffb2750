"""Pages: templates to HTML that stands alone, with pictures and their captions inside."""

from __future__ import annotations

import base64
import io
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

import jinja2

from pyro_tvae.files import reading

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["Caption", "Picture", "render", "shown"]

Picture: TypeAlias = "Path | Figure"

MEDIA = {".png": "image/png", ".jpg": "image/jpeg", ".jpeg": "image/jpeg", ".svg": "image/svg+xml"}


class Caption(NamedTuple):
    """Words for one figure: its title, what to look for, and what a reader who cannot see it should know."""

    title: str
    look_for: str
    alternative: str


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


def shown(name: str, picture: Picture, caption: Caption) -> dict[str, str]:
    """What a template needs of a picture: its name, its caption, the address of what the page itself holds, and whether
    it moves.

    Raises:
        FileNotFoundError: the file is not there.
        ValueError: it has another format.
    """
    if isinstance(picture, str | Path):
        path = Path(picture)
        if path.suffix.lower() not in MEDIA:
            raise ValueError(f"figure {name}: {path} is not one of {', '.join(MEDIA)}.")
        with reading(path):
            media, content = MEDIA[path.suffix.lower()], path.read_bytes()
    else:
        from .style import literal  # matplotlib takes a second to import, for which a page of files does not wait

        buffer = io.BytesIO()
        literal(picture).savefig(buffer, format="png", dpi=150, facecolor="white")
        media, content = "image/png", buffer.getvalue()
    address = f"data:{media};base64,{base64.b64encode(content).decode('ascii')}"
    animated = "yes" if media == "image/png" and b"acTL" in content[:100] else ""
    return {"name": name, **caption._asdict(), "address": address, "animated": animated}
