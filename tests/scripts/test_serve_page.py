"""The page of `prismcap serve --ui` in a real browser: an image, an instruction, the growing caption."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest
import webdriver
from PIL import Image
from served import fake_vllm, free_port, serving

from prismcap.data.image import FileImage
from prismcap.model.hf.files import MARKER
from prismcap.scripts.serving.client import ServerError
from prismcap.scripts.serving.page import build_page, page_theme

gradio = pytest.importorskip("gradio", reason="the extra `ui` is not installed")

WORDS = [f" word{i}" for i in range(40)]
INSTRUCTION = "#instruction :is(textarea, input)"
VALUE = "const field = document.querySelector('%s'); return field && field.value"
CAPTION = VALUE % "#caption textarea"


@pytest.mark.skipif(webdriver.why_no_browser() is not None, reason=webdriver.why_no_browser() or "")
def test_a_browser_shows_the_caption_as_it_is_written(tmp_path: Path) -> None:
    model = tmp_path / "model"
    model.mkdir()
    (model / "config.json").write_text("{}")
    marker = {"name": "tiny", "format": "llava", "prompt": "What is it?", "stop": [" word30"]}
    (model / MARKER).write_text(json.dumps(marker))
    picture = tmp_path / "picture.png"
    Image.effect_noise((60, 40), 90).convert("RGB").save(picture)
    port = free_port()
    options = ["--backend", "vllm", "--ui", "--ui-port", str(port)]
    with (
        serving(model, tmp_path / "log", *options, **fake_vllm(tmp_path, json.dumps(WORDS))) as served,
        webdriver.browser(tmp_path) as browser,
    ):
        assert f"The page:  http://127.0.0.1:{port}" in served.said
        browser.open(f"http://127.0.0.1:{port}")
        browser.find("#ask")
        assert browser.run(VALUE % INSTRUCTION) == "What is it?"
        browser.click("#ask")
        webdriver.until(
            lambda: "There is no image yet" in str(browser.run("return document.body.innerText")), "a word"
        )
        browser.type("#image input[type=file]", str(picture))
        webdriver.until(
            lambda: browser.run("return document.querySelectorAll('#image img').length"), "the picture"
        )
        browser.clear(INSTRUCTION)
        browser.type(INSTRUCTION, "Name it.")
        browser.click("#ask")
        seen = watch(browser)
        browser.screenshot(tmp_path / "page.png")
        assert served.end() == 7
    text = "".join(WORDS[:30]).strip()
    assert seen[-1] == text and len(seen) > 3, seen
    assert all(text.startswith(part) for part in seen), "it only grows"
    (request,) = [json.loads(line) for line in (tmp_path / "requests.jsonl").read_text().splitlines()]
    image, instruction = request["messages"][0]["content"]
    assert instruction["text"] == "Name it."
    assert read_data_url(image["image_url"]["url"]).tobytes() == Image.open(picture).tobytes()


def watch(browser: webdriver.Browser) -> list[str]:
    """The different texts of the caption's field, until it is the same for a while."""
    seen: list[str] = []
    same = 0
    end = time.monotonic() + webdriver.WAIT_S
    while same < 30 and time.monotonic() < end:
        text = browser.run(CAPTION)
        same = same + 1 if seen and text == seen[-1] else 0
        if text and not same:
            seen.append(text)
    return seen


def read_data_url(url: str) -> Image.Image:
    import base64
    import io

    return Image.open(io.BytesIO(base64.b64decode(url.partition(",")[2])))


def test_errors_of_the_server_reach_the_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(_: Any, __: str) -> Any:
        raise ServerError("out of memory")
        yield

    page = build_page(fails, "tiny", "What?")
    (handler,) = [function.fn for function in page.fns.values() if function.fn is not None]
    picture = tmp_path / "picture.png"
    Image.new("RGB", (20, 20)).save(picture)
    with pytest.raises(gradio.Error, match="out of memory"):
        list(handler(str(picture), "x"))
    # nothing before the handler decodes it
    (image,) = [block for block in page.blocks.values() if isinstance(block, gradio.Image)]
    monkeypatch.setattr(Image.Image, "load", None)
    monkeypatch.setattr("PIL.PngImagePlugin.PngImageFile.load", None)
    given = gradio.data_classes.FileData(path=str(picture))
    assert image.preprocess(gradio.components.image.ImageData(**given.model_dump())) == str(picture)
    monkeypatch.undo()
    monkeypatch.setattr(FileImage, "max_pixels", 399)
    with pytest.raises(gradio.Error, match=r"this picture: .* more than max_image_pixels=399"):
        list(handler(str(picture), "x"))
    with pytest.raises(gradio.Error, match="no image yet"):
        list(handler(None, "x"))


def test_the_page_asks_nothing_of_another_machine() -> None:
    assert not page_theme()._stylesheets
