"""What perceivers that run in this process share: devices, the order of work, the identity of a folder."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch

from prismcap.configs.errors import ConfigError
from prismcap.data.schema import ImageRef
from prismcap.evaluate.clients.answer import Answer
from prismcap.evaluate.perceivers._contract import PerceiverContext
from prismcap.evaluate.perceivers._several import View
from prismcap.model.generate import Generated


def local_device(device: str) -> torch.device:
    """`cuda` without a number is this process's own under torchrun (LOCAL_RANK).

    Raises ConfigError where there is no such device.
    """
    try:
        chosen = torch.device(device)
    except RuntimeError as error:
        raise ConfigError(f"device {device!r}: {str(error).partition(chr(10))[0]}") from error
    if chosen.type != "cuda":
        return chosen
    if chosen.index is None:
        chosen = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
    num_devices = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if (chosen.index or 0) >= num_devices:
        raise ConfigError(
            f"device {device!r}: {chosen} is not there, this machine shows {num_devices} GPU(s). Start as "
            "many processes as there are GPUs (torchrun --nproc-per-node), or set device to cpu"
        )
    return chosen


def refuse_sampling(context: PerceiverContext) -> None:
    """Raises ConfigError: pictures are described greedily or with beams, so that a run can be repeated."""
    if context.decoding.temperature > 0:
        raise ConfigError(
            f"perceivers.{context.name}: a local model describes pictures without sampling, and "
            f"decoding.perceive.temperature is {context.decoding.temperature}: set it to 0"
        )


def answer_of(generated: Generated, tokens_in: int, latency_s: float) -> Answer:
    """A generated text as an answer; one without a word is a failure, as it is of an endpoint."""
    text = generated.text.strip()
    return Answer(
        text=text,
        status="ok" if text else "failed",
        error=None if text else "empty text: the model ended it before it wrote a word",
        finish_reason=generated.finish_reason,
        tokens_in=tokens_in,
        tokens_out=len(generated.token_ids),
        latency_s=latency_s,
    )


def chunks_by_picture(views: Sequence[View], size: int) -> Iterator[list[int]]:
    """Positions in chunks of `size`, those of one picture next to each other, pictures in order of their
    first view: a picture is in more than one chunk only where its own views are."""
    by_image: dict[ImageRef, list[int]] = {}
    for position, view in enumerate(views):
        by_image.setdefault(view.image, []).append(position)
    order = [position for positions in by_image.values() for position in positions]
    for start in range(0, len(order), size):
        yield order[start : start + size]


def folder_hash(folder: Path) -> str:
    """Changes with every file of a model's folder but those that only people read. No weights are loaded,
    their bytes are read once (about a second per GB). Raises ConfigError when that fails."""
    digest = hashlib.blake2b(digest_size=8)
    try:
        for path in sorted(folder.rglob("*")):
            relative = path.relative_to(folder)
            hidden = any(part.startswith(".") for part in relative.parts)
            if hidden or not path.is_file() or path.suffix == ".md":
                continue
            with path.open("rb") as stream:
                content = hashlib.file_digest(stream, lambda: hashlib.blake2b(digest_size=16))
            digest.update(f"{relative.as_posix()}\0{content.hexdigest()}\n".encode())
    except OSError as error:
        raise ConfigError(f"{folder}: the model's files cannot be read: {error}") from error
    return digest.hexdigest()
