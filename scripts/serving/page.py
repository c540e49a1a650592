"""A page for a browser: an image, an instruction, and the caption as it is written (Gradio)."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prismcap.configs.errors import MissingExtraError
from prismcap.data.image import FileImage, read_image
from prismcap.data.schema import SampleRejected
from prismcap.evaluate.clients.data_url import data_url
from prismcap.scripts.serving.backends import ServedExport
from prismcap.scripts.serving.client import (
    Address,
    ServerError,
    answer_pieces,
    chat_body,
    growing_text,
)

if TYPE_CHECKING:
    from PIL import Image

MAX_NEW_TOKENS = 256
# the browser's own: others would be fetched from another machine
FONTS = ("system-ui", "sans-serif")
Answer = Callable[["Image.Image", str], Iterator[str]]


def answers_of(export: ServedExport, address: Address) -> Answer:
    """What a server at `address` writes about a picture: the caption so far, again and again."""

    def answer(image: Image.Image, instruction: str) -> Iterator[str]:
        body = chat_body(export.name, data_url(image), instruction, MAX_NEW_TOKENS)
        # closed at the first stop string, and when the browser goes away: the server then stops writing
        with closing(answer_pieces(address, body)) as pieces:
            yield from growing_text(pieces, export.stop)

    return answer


def check_page() -> None:
    """Raises MissingExtraError without Gradio."""
    _gradio()


def _gradio() -> Any:
    # before the import, which reads it: nothing is told to another machine
    os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")
    try:
        import gradio
    except ImportError as error:
        # Gradio 6.31 wants Pillow below 13, which constraints.txt has
        raise MissingExtraError("gradio", "ui", "`prismcap serve --ui`", locked=False) from error
    return gradio


def build_page(answer: Answer, name: str, prompt: str) -> Any:
    """The page, not yet open. Raises MissingExtraError without Gradio."""
    gradio = _gradio()

    def caption(path: str | None, instruction: str) -> Iterator[str]:
        if path is None:
            raise gradio.Error("There is no image yet.", print_exception=False)
        try:
            picture = read_image(Path(path), "this picture", FileImage.max_pixels)
            yield from answer(picture, instruction)
        except (OSError, ServerError, SampleRejected) as error:
            raise gradio.Error(str(error), print_exception=False) from error

    with gradio.Blocks(title=name, analytics_enabled=False) as page:
        gradio.Markdown(f"# {name}")
        with gradio.Row():
            with gradio.Column():
                # a path, in any mode: Gradio itself would decode a picture of any size
                image = gradio.Image(
                    type="filepath",
                    image_mode=None,
                    label="Image",
                    sources=["upload", "clipboard"],
                    elem_id="image",
                )
                instruction = gradio.Textbox(value=prompt, label="Instruction", elem_id="instruction")
                button = gradio.Button("Caption", variant="primary", elem_id="ask")
            text = gradio.Textbox(label="Caption", lines=8, interactive=False, elem_id="caption")
        gradio.on([button.click, instruction.submit], caption, [image, instruction], text)
    return page


def page_theme() -> Any:
    """Gradio's own look, without a font of another machine."""
    return _gradio().themes.Default(font=FONTS, font_mono=("ui-monospace", "monospace"))


def open_page(answer: Answer, export: ServedExport, address: Address) -> Any:
    """Open the page at `address`, in threads of this process. Returns it; its `close()` ends it."""
    own = dict.fromkeys((address.host, address.reachable_host, "localhost"))
    for key in ("no_proxy", "NO_PROXY"):
        # Gradio looks whether its page answers, and would ask a proxy for it
        os.environ[key] = ",".join(filter(None, (os.environ.get(key), *own)))
    page = build_page(answer, export.name, export.prompt)
    page.launch(
        server_name=address.host,
        server_port=address.port,
        theme=page_theme(),
        share=False,
        prevent_thread_lock=True,
        quiet=True,
    )
    return page
