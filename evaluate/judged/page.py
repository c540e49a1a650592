"""The page on which people rate: pictures, questions and blinded answers, in one HTML file."""

from __future__ import annotations

import base64
import io
from pathlib import Path
from typing import Any

from PIL import Image

from prismcap.configs.cache import resolve_path
from prismcap.configs.errors import ConfigError, DataError
from prismcap.data.image import open_image, resolve_inside
from prismcap.evaluate.judged.blinding import blinded, page_id
from prismcap.evaluate.judged.evaluation import Evaluation
from prismcap.evaluate.judged.grades import GRADES
from prismcap.evaluate.judged.protocols._contract import JudgedItem
from prismcap.evaluate.judged.ratings import FORMAT
from prismcap.evaluate.report.rating_page import render_rating_page

PICTURE_PX = 640  # the longer side: enough to read a sign, and 50 pictures are a few MB


def rating_page(evaluation: Evaluation) -> str:
    """The page as text; the same evaluation gives the same page.

    Raises ConfigError without `images`, DataError naming the question of a picture that cannot be read.
    """
    if evaluation.config.images is None:
        raise ConfigError(
            f"{evaluation.config.name}: images: name the folder of the pictures: people rate what they see"
        )
    root = resolve_path(evaluation.config.images)
    if not root.is_dir():
        raise ConfigError(f"images: {evaluation.config.images}: no such folder")
    pictures: dict[str, str] = {}
    questions: list[dict[str, Any]] = []
    texts = {item.id: item.question for item in evaluation.protocol.items}
    for item, answers in blinded(evaluation):
        if item.image not in pictures:
            pictures[item.image] = _picture(root, item, evaluation.config.local.max_image_pixels)
        questions.append(
            {
                "id": item.id,
                "question": item.question,
                "earlier": [texts[before] for before in item.earlier],
                "picture": list(pictures).index(item.image),
                "answers": [[answer.token, answer.text] for answer in answers],
            }
        )
    data = {
        "format": FORMAT,
        "page": page_id(evaluation),
        "name": evaluation.config.name,
        "grades": GRADES,
        "questions": questions,
        "pictures": list(pictures.values()),
    }
    return render_rating_page(evaluation.config.name, data)


def _picture(root: Path, item: JudgedItem, max_pixels: int) -> str:
    """A data URI."""
    try:
        picture = open_image(resolve_inside(root, item.image), max_pixels)
    except DataError as error:
        raise DataError(
            f"{item.where}: image {item.image!r}: {error}. Mend the file, or correct the row or `images`"
        ) from error
    picture.thumbnail((PICTURE_PX, PICTURE_PX), Image.Resampling.LANCZOS)
    stream = io.BytesIO()
    picture.save(stream, format="JPEG", quality=85)
    return f"data:image/jpeg;base64,{base64.b64encode(stream.getvalue()).decode()}"
