"""Pictures as text, for endpoints that take them inside of a request."""

from __future__ import annotations

import base64
import io
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from PIL import Image


def data_url(image: Image.Image) -> str:
    """The picture within an address, as PNG: no pixel changes on the way."""
    buffer = io.BytesIO()
    image.convert("RGB").save(buffer, format="PNG")
    return f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode('ascii')}"
