"""Generation in batches, greedy or with beams, equal to generating one by one.

Shape legend: B prompts, T positions of the longest prompt, P tiles, K patches, D encoder width,
S tile side in pixels, G generated positions.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor
from transformers import GenerationConfig, StoppingCriteria, StoppingCriteriaList

from prismcap.data.schema import IGNORE_INDEX, Batch, DataError, Encoded
from prismcap.model.captioner import Captioner
from prismcap.model.kernels import uncompiled


@dataclass(frozen=True)
class Generated:
    """text: without special tokens and without the stop. token_ids: up to the token that ended it,
    which is kept only where it is text. finish_reason: `length` when max_new_tokens came first."""

    text: str
    token_ids: tuple[int, ...]
    finish_reason: Literal["stop", "length"]


@torch.no_grad()
def generate(
    captioner: Captioner,
    prompts: Sequence[Encoded],
    *,
    tiles_P3SS: Tensor | None = None,
    features_PKD: Tensor | None = None,
    max_new_tokens: int,
    stop: Sequence[str] = (),
    num_beams: int = 1,
) -> list[Generated]:
    """The most likely continuation of each prompt, token by token; num_beams: the best of so many at once.

    Pictures come as tiles or as the encoder's features, one per image (with anyres all tiles of an image,
    as its prompt's tilings say), in the order of the prompts and of the images in each. `stop` holds the
    template's stop strings; the tokenizer's end of text always stops. Runs in eval mode, and leaves modes as
    they were. Raises DataError when pictures and prompts disagree.
    """
    if not prompts:
        return []
    batch = _left_padded(prompts, _pad_id(captioner), tiles_P3SS, features_PKD).to(captioner.device)
    ends, texts = stop_ids(captioner.tokenizer, stop)
    criteria = StoppingCriteriaList([_TextStop(captioner.tokenizer, texts)] if texts else [])
    with _plain_eval(captioner), uncompiled(captioner.llm):
        sequences_BG = captioner.llm.generate(
            inputs_embeds=captioner.embed(batch),
            attention_mask=batch.segment_ids,
            stopping_criteria=criteria,
            generation_config=GenerationConfig(
                do_sample=False,
                num_beams=num_beams,
                max_new_tokens=max_new_tokens,
                eos_token_id=sorted(ends) or None,
                pad_token_id=_pad_id(captioner),
                use_cache=True,
            ),
        )
    rows: list[list[int]] = sequences_BG.tolist()
    return [finish(captioner.tokenizer, row[:max_new_tokens], ends, texts) for row in rows]


def stop_ids(tokenizer: Any, stop: Sequence[str]) -> tuple[set[int], tuple[str, ...]]:
    """Token ids that end a text, and the stop strings that are not a single special token."""
    if tokenizer is None:
        return set(), ()
    ends = set() if tokenizer.eos_token_id is None else {int(tokenizer.eos_token_id)}
    texts = []
    special = set(tokenizer.all_special_tokens)
    added = {token.content for token in tokenizer.added_tokens_decoder.values()}
    for string in stop:
        if string in special | added:
            ends.add(int(tokenizer.convert_tokens_to_ids(string)))
        elif string:
            texts.append(string)
    return ends, tuple(texts)


class _TextStop(StoppingCriteria):
    """Per row: whether a stop string has appeared in the generated text."""

    def __init__(self, tokenizer: Any, texts: Sequence[str]) -> None:
        self.tokenizer = tokenizer
        self.texts = texts

    def __call__(self, input_ids: Tensor, scores: Tensor, **_: Any) -> Tensor:  # noqa: ARG002
        found = [
            any(text in decoded for text in self.texts)
            for decoded in self.tokenizer.batch_decode(input_ids, skip_special_tokens=True)
        ]
        return torch.tensor(found, dtype=torch.bool, device=input_ids.device)


def finish(tokenizer: Any, ids: list[int], ends: set[int], texts: Sequence[str]) -> Generated:
    """Cut one row at whatever ended it first; rows run on until the last of the batch has ended.

    ends, texts: see stop_ids.
    """
    reason: Literal["stop", "length"] = "length"
    for position, token in enumerate(ids):
        if token in ends:
            ids, reason = ids[:position], "stop"
            break
    if tokenizer is None:
        return Generated(text="", token_ids=tuple(ids), finish_reason=reason)
    decoded = tokenizer.decode(ids, skip_special_tokens=True)
    if any(text in decoded for text in texts):
        reason = "stop"
        ids = _shortest_with(tokenizer, ids, texts)
        decoded = tokenizer.decode(ids, skip_special_tokens=True)
        decoded = decoded[: min(decoded.index(text) for text in texts if text in decoded)]
    return Generated(text=decoded, token_ids=tuple(ids), finish_reason=reason)


def _shortest_with(tokenizer: Any, ids: list[int], texts: Sequence[str]) -> list[int]:
    for length in range(1, len(ids)):
        decoded = tokenizer.decode(ids[:length], skip_special_tokens=True)
        if any(text in decoded for text in texts):
            return ids[:length]
    return ids


def _left_padded(
    prompts: Sequence[Encoded], pad_id: int, tiles: Tensor | None, features: Tensor | None
) -> Batch:
    """One row per prompt, ending at T: new tokens follow every prompt at once."""
    given = 0
    for pictures in (tiles, features):
        given += 0 if pictures is None else len(pictures)
    num_images = sum(len(prompt.images) for prompt in prompts)
    tilings = [tiling for prompt in prompts for tiling in prompt.tilings]
    if tilings and len(tilings) != num_images:
        raise DataError(
            f"{len(tilings)} of the {num_images} pictures of the prompts are cut into a grid of tiles"
        )
    counts = [tiling.num_tiles for tiling in tilings] or [1] * num_images
    if given != sum(counts):
        what = "tiles" if tilings else "pictures"
        raise DataError(f"{given} {what} were given for prompts with {sum(counts)}")
    length = max(len(prompt) for prompt in prompts)
    input_ids = torch.full((len(prompts), length), pad_id)
    position_ids = torch.zeros_like(input_ids)
    segment_ids = torch.zeros_like(input_ids)
    spans: list[tuple[int, int, int, int]] = []
    first_image = 0
    for row, prompt in enumerate(prompts):
        pad = length - len(prompt)
        input_ids[row, pad:] = prompt.input_ids
        position_ids[row, pad:] = torch.arange(len(prompt))
        segment_ids[row, pad:] = 1
        spans.extend((first_image + image, row, pad + start, size) for image, start, size in prompt.spans)
        first_image += len(prompt.images)
    return Batch(
        input_ids=input_ids,
        labels=torch.full_like(input_ids, IGNORE_INDEX),
        position_ids=position_ids,
        segment_ids=segment_ids,
        spans=torch.tensor(spans, dtype=torch.long).reshape(-1, 4),
        tile_image=torch.arange(num_images).repeat_interleave(torch.tensor(counts, dtype=torch.long)),
        image_sizes=torch.tensor(
            [(tiling.height, tiling.width) for tiling in tilings] or [(0, 0)] * num_images, dtype=torch.long
        ).reshape(-1, 2),
        image_grids=torch.tensor([(tiling.rows, tiling.columns) for tiling in tilings]) if tilings else None,
        tiles=tiles,
        features=features,
        sample_ids=tuple(prompt.id for prompt in prompts),
    )


def _pad_id(captioner: Captioner) -> int:
    tokenizer = captioner.tokenizer
    for value in (getattr(tokenizer, "pad_token_id", None), getattr(tokenizer, "eos_token_id", None)):
        if value is not None:
            return int(value)
    return 0


@contextmanager
def _plain_eval(captioner: Captioner) -> Iterator[None]:
    """Eval mode (which also turns gradient checkpointing off), and no decoding defaults of the LLM's
    own, such as a temperature or a repetition penalty; then everything as it was."""
    modes = {module: module.training for module in captioner.modules()}
    defaults = captioner.llm.generation_config
    captioner.eval()
    captioner.llm.generation_config = GenerationConfig()
    try:
        yield
    finally:
        captioner.llm.generation_config = defaults
        for module, mode in modes.items():
            module.training = mode
