"""An exported captioner, or any image-text-to-text model of transformers, asked about pictures in batches."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from PIL import Image

from prismcap.data.image import MAX_INTERMEDIATE_PIXELS
from prismcap.data.schema import SampleRejected
from prismcap.model.generate import Generated, finish, stop_ids
from prismcap.model.hf.load import Exported


def check_shape(image: Image.Image, name: str, geometry: Any) -> None:
    """Raises SampleRejected for a strip so long that its padded or enlarged form would fill the memory.

    geometry: the image processor of an export; name: of the picture, for the message.
    """
    short, long = sorted(image.size)
    shortest_edge = dict(geometry.size).get("shortest_edge")
    # where pictures are cut into tiles, do_pad fills up a batch
    padded = getattr(geometry, "do_pad", False) and not getattr(geometry, "image_grid_pinpoints", None)
    pixels = long * long if padded else 0
    if shortest_edge:
        pixels = max(pixels, int(shortest_edge * shortest_edge * long / short))
    if pixels > MAX_INTERMEDIATE_PIXELS:
        message = f"{name}: {image.width} x {image.height} pixels is too long a strip for this model; crop it"
        raise SampleRejected("image_too_elongated", message)


def model_inputs(exported: Exported, images: Sequence[Image.Image], prompts: Sequence[str]) -> Any:
    """What the processor makes of a picture and a prompt per row, by the model's own chat template.

    Raises what the processor raises for a picture that it cannot use.
    """
    processor = exported.processor
    texts = [
        processor.apply_chat_template(
            [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": prompt}]}],
            add_generation_prompt=True,
        )
        for prompt in prompts
    ]
    bos = processor.tokenizer.bos_token
    return processor(
        images=[[image] for image in images],  # of each row: some processors read a flat list as one row's
        text=texts,
        padding=True,
        # a template that writes its own opening token must not get a second one
        add_special_tokens=not (bos and texts[0].startswith(bos)),
        return_tensors="pt",
    )


def generate_answers(
    exported: Exported, inputs: Any, max_new_tokens: int, num_beams: int = 1
) -> list[Generated]:
    """The most likely answer to each row of model_inputs: greedy, or the best of num_beams at once.

    Other defaults of the model, such as a repetition penalty, are as its makers set them.
    """
    model, tokenizer = exported.model, exported.processor.tokenizer
    # the other stops are ids, and known to the model
    ends, stop_texts = stop_ids(tokenizer, exported.stop)
    of_model = model.generation_config.eos_token_id
    ends |= set(of_model if isinstance(of_model, list) else [] if of_model is None else [of_model])
    options: dict[str, Any] = {"max_new_tokens": max_new_tokens, "num_beams": num_beams}
    # None: set by many models for sampling, and only warned about here
    options |= {"do_sample": False, "temperature": None, "top_p": None, "top_k": None}
    options |= {"eos_token_id": sorted(ends) or None, "pad_token_id": _pad_id(tokenizer, ends)}
    if stop_texts:
        options |= {"stop_strings": list(stop_texts), "tokenizer": tokenizer}
    inputs = inputs.to(model.device)
    with torch.inference_mode():
        output_BG = model.generate(**inputs, **options)
    prompt_length = inputs["input_ids"].shape[1]
    rows: list[list[int]] = output_BG[:, prompt_length:].tolist()
    return [finish(tokenizer, row[:max_new_tokens], ends, stop_texts) for row in rows]


def _pad_id(tokenizer: Any, ends: set[int]) -> int:
    pad = tokenizer.pad_token_id
    return int(pad) if pad is not None else min(ends, default=0)
