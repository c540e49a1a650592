"""The captioner: vision encoder, connector and LLM in one module.

Shape legend: P tiles, S tile side in pixels, K patches, D encoder width, N tokens of a tile,
B rows, T positions, H LLM width, M images, R spans, Q tokens of all tiles (P x N; one more with a newline).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from prismcap.configs.schema.data import DataConfig
from prismcap.data.schema import IGNORE_INDEX, Batch, DataError, Grid, ImageSpec, TokenSpec
from prismcap.model.attention import attention_inputs, check_window, is_flattened
from prismcap.model.contracts import Connector, VisionEncoder
from prismcap.model.huggingface import set_checkpointing
from prismcap.model.loss import supervised_positions, token_loss
from prismcap.model.text_tower import TextTower, pair_loss


@dataclass
class Output:
    """loss_sum: cross entropy summed over the supervised tokens, fp32 scalar. num_correct: how many of them
    are the likeliest one at their place, long scalar without a gradient. The caller divides both by
    the count over all micro-batches and ranks. In a contrastive stage pairs take the place of tokens."""

    loss_sum: Tensor
    num_target_tokens: int
    num_correct: Tensor


class Captioner(nn.Module):
    """Put together by model/build.py. `tokenizer` is None only for a random LLM without text."""

    def __init__(self, vision_encoder: VisionEncoder, connector: Connector, llm: Any, tokenizer: Any) -> None:
        super().__init__()
        self.vision_encoder = vision_encoder
        self.connector = connector
        self.llm = llm
        self.tokenizer = tokenizer
        self.text_tower: TextTower | None = None  # only while a contrastive stage trains (prepare_stage)
        # an engine that shards frozen weights too sets it: gathering them is collective, pictures or not
        self.always_encodes = False
        self.compiled = False  # the LLM's layers are (model/kernels.py)

    @property
    def image_spec(self) -> ImageSpec:
        return self.vision_encoder.image_spec

    @property
    def token_spec(self) -> TokenSpec:
        return TokenSpec(self.connector.num_tokens, self.connector.token_grid)

    def image_spec_of(self, data: DataConfig) -> ImageSpec:
        """How the pictures of a stage become tiles."""
        return replace(self.image_spec, geometry=data.geometry, grids=data.grids)

    def token_spec_of(self, data: DataConfig) -> TokenSpec:
        """How many positions the pictures of a stage take."""
        spec = self.image_spec_of(data)
        # configs/schema/run.py and build.py let no stage have grids otherwise
        assert not spec.grids or self.connector.newline is not None
        return replace(self.token_spec, image_spec=spec if spec.grids else None)

    @property
    def device(self) -> torch.device:
        device: torch.device = next(self.llm.parameters()).device
        return device

    @property
    def trains_encoder(self) -> bool:
        return any(parameter.requires_grad for parameter in self.vision_encoder.parameters())

    def train(self, mode: bool = True) -> Captioner:
        """As of nn.Module, but a frozen encoder stays in eval mode, and BatchNorm always does: its
        statistics would come to depend on how samples were packed and spread over ranks."""
        super().train(mode)
        if not self.trains_encoder:
            self.vision_encoder.eval()
        for module in self.vision_encoder.modules():
            if isinstance(module, _BatchNorm):
                module.eval()
        return self

    def enable_gradient_checkpointing(self) -> None:
        """Recompute the layers of the LLM, and of an encoder that trains, in the backward pass."""
        set_checkpointing(self.llm, True)
        self.vision_encoder.set_gradient_checkpointing(self.trains_encoder)

    def disable_gradient_checkpointing(self) -> None:
        """The reverse; finish_stage calls it, so that a stage does not inherit it."""
        set_checkpointing(self.llm, False)
        self.vision_encoder.set_gradient_checkpointing(False)

    def encode_images(self, tiles_P3SS: Tensor) -> Tensor:
        """features_PKD. A frozen encoder runs without a graph."""
        with torch.set_grad_enabled(torch.is_grad_enabled() and self.trains_encoder):
            features_PKD: Tensor = self.vision_encoder(tiles_P3SS)
        return features_PKD

    def embed(self, batch: Batch) -> Tensor:
        """[B, T, H]: token embeddings, with every span overwritten by its picture's tokens.

        Raises DataError when spans, tiles and tokens disagree.
        """
        embeddings_BTH: Tensor = self.llm.get_input_embeddings()(batch.input_ids)
        if batch.tiles is not None and batch.features is not None:
            raise DataError("the batch has both tiles and features; exactly one is expected")
        features_PKD = batch.features
        if batch.tiles is not None:
            features_PKD = self.encode_images(batch.tiles)
        if features_PKD is None or features_PKD.shape[0] == 0:
            if batch.spans.numel():
                raise DataError(f"{len(batch.spans)} image spans, but neither tiles nor features{_of(batch)}")
            # every rank runs the same modules in every step, or collectives over gradients hang; adding
            # it here and not to the loss keeps the backward pass the same as well
            return embeddings_BTH + 0.0 * self._dummy_tokens().sum().to(embeddings_BTH.dtype)
        tokens_QH = self._image_tokens(features_PKD)
        connector = self.connector
        if batch.image_grids is not None and connector.newline is None:
            raise DataError(f"pictures in grids of tiles, and the model has no image_newline{_of(batch)}")
        target, source = span_indices(batch, len(features_PKD), connector.num_tokens, connector.token_grid)
        tokens = tokens_QH[source].to(embeddings_BTH.dtype)
        return embeddings_BTH.flatten(0, 1).index_copy(0, target, tokens).view_as(embeddings_BTH)

    def _image_tokens(self, features_PKD: Tensor) -> Tensor:
        """tokens_QH: those of all tiles, then the newline where there is one (in every step: see embed)."""
        tokens_PNH: Tensor = self.connector(features_PKD)
        tokens_QH = tokens_PNH.flatten(0, 1)
        if self.connector.newline is not None:
            tokens_QH = self.connector.newline(tokens_QH)
        return tokens_QH

    def hidden_states(self, batch: Batch) -> Tensor:
        """[B, T, H]: the LLM's last hidden states, each sample seeing itself alone."""
        embeddings_BTH = self.embed(batch)
        implementation = self.llm.config._attn_implementation
        check_window(self.llm.config, batch.input_ids.shape[1])
        inputs = attention_inputs(
            implementation,
            batch.position_ids,
            batch.segment_ids,
            dtype=embeddings_BTH.dtype,
            compiled=self.compiled,
        )
        rows = embeddings_BTH
        if is_flattened(implementation):
            rows = embeddings_BTH.flatten(0, 1)[None]
        output = self.llm.base_model(inputs_embeds=rows, use_cache=False, **inputs)
        hidden_BTH: Tensor = output.last_hidden_state.reshape(embeddings_BTH.shape)
        return hidden_BTH

    def forward(self, batch: Batch) -> Output:
        """The summed loss of a packed batch (zero, with gradients, when nothing is supervised)."""
        if self.text_tower is not None:
            return Output(*pair_loss(self.vision_encoder, self.text_tower, batch))
        hidden_BTH = self.hidden_states(batch)
        position_N, target_N = supervised_positions(batch.labels, batch.position_ids)
        hidden_NH = hidden_BTH.flatten(0, 1)[position_N]
        loss_sum, num_correct = token_loss(hidden_NH, target_N, self.llm.get_output_embeddings())
        return Output(loss_sum, int(target_N.numel()), num_correct)

    def logits(self, batch: Batch) -> Tensor:
        """[B, T, V] at every position, for tests and analysis; training never makes them all."""
        logits_BTV: Tensor = self.llm.get_output_embeddings()(self.hidden_states(batch))
        return logits_BTV

    def _dummy_tokens(self) -> Tensor:
        """tokens_QH of one blank tile; through the encoder too when the other ranks need that."""
        parameter = next(self.connector.parameters())
        encoder = self.vision_encoder
        if self.trains_encoder or self.always_encodes:
            size = encoder.image_spec.size_px
            features = self.encode_images(torch.zeros(1, 3, size, size, device=self.device))
        else:
            shape = (1, encoder.features_per_tile, encoder.hidden_size)
            features = torch.zeros(shape, device=self.device, dtype=parameter.dtype)
        return self._image_tokens(features)


def span_indices(
    batch: Batch, num_tiles: int, tokens_per_tile: int, token_grid: Grid | None = None
) -> tuple[Tensor, Tensor]:
    """Where image tokens go in the flattened rows, and where they come from in the flattened tiles.

    Both long [sum of span lengths]. An image may have several tiles (contiguous) and several spans. Its
    tokens are those of its tiles in order, or with anyres those that Tiling.token_order names for tiles of
    token_grid = (rows, columns) of tokens; the newline comes from behind the last tile.
    Raises DataError when lengths, rows, images or labels disagree.
    """
    rows, row_tokens = batch.input_ids.shape
    if len(batch.tile_image) != num_tiles:
        raise DataError(f"{num_tiles} tiles, but tile_image names {len(batch.tile_image)}{_of(batch)}")
    if batch.spans.numel() == 0:
        raise DataError(f"{num_tiles} tiles, but no span that shows them{_of(batch)}")
    num_images = int(batch.tile_image.max()) + 1
    if bool((batch.tile_image.diff() < 0).any()):
        raise DataError(f"the tiles of an image must lie together, in the order of the images{_of(batch)}")
    image_R, row_R, start_R, length_R = batch.spans.unbind(1)
    tiles_M = torch.bincount(batch.tile_image, minlength=num_images)
    outside = (image_R < 0) | (image_R >= num_images) | (row_R < 0) | (row_R >= rows)
    outside |= (start_R < 0) | (start_R + length_R > row_tokens)
    if bool(outside.any()):
        raise DataError(
            f"span {_first(batch.spans, outside)} (image, row, start, length) lies outside "
            f"{num_images} images and rows of {rows} x {row_tokens}{_of(batch)}"
        )
    order, tokens_M = _token_order(batch, tiles_M, tokens_per_tile, token_grid)
    expected_R = tokens_M[image_R]
    if bool((length_R != expected_R).any()):
        wrong = length_R != expected_R
        raise DataError(
            f"span {_first(batch.spans, wrong)} (image, row, start, length): its image has "
            f"{int(expected_R[wrong][0])} tokens{_of(batch)}"
        )
    if len(image_R.unique()) != num_images:
        raise DataError(f"{num_images} images, but spans show only {len(image_R.unique())}{_of(batch)}")
    within = torch.arange(int(length_R.sum()), device=length_R.device)
    within -= (length_R.cumsum(0) - length_R).repeat_interleave(length_R)
    target = (row_R * row_tokens + start_R).repeat_interleave(length_R) + within
    source = order[(tokens_M.cumsum(0) - tokens_M)[image_R].repeat_interleave(length_R) + within]
    if len(target.unique()) != len(target):
        raise DataError(f"image spans overlap: {batch.spans.tolist()}{_of(batch)}")
    if bool((batch.labels.flatten()[target] != IGNORE_INDEX).any()):
        raise DataError(f"a label falls on an image token{_of(batch)}")
    return target, source


def _token_order(
    batch: Batch, tiles_M: Tensor, tokens_per_tile: int, token_grid: Grid | None
) -> tuple[Tensor, Tensor]:
    """Where each image's tokens come from, image after image: long [Q'], and how many each has: long [M]."""
    device = tiles_M.device
    num_tokens = int(tiles_M.sum()) * tokens_per_tile
    tilings = batch.tilings()
    if tilings is None:
        return torch.arange(num_tokens, device=device), tiles_M * tokens_per_tile
    if token_grid is None or len(tilings) != len(tiles_M):
        raise DataError(f"{len(tilings)} grids of tiles for {len(tiles_M)} images{_of(batch)}")
    orders: list[Tensor] = []
    first_tile = 0
    for tiling, num_tiles in zip(tilings, tiles_M.tolist(), strict=True):
        if num_tiles != tiling.num_tiles:
            raise DataError(f"{num_tiles} tiles of an image that {tiling} cuts into others{_of(batch)}")
        orders.append(tiling.token_order(token_grid, first_tile * tokens_per_tile, newline=num_tokens))
        first_tile += num_tiles
    counts = torch.tensor([len(order) for order in orders], device=device)
    return torch.cat(orders).to(device), counts


def _first(spans_R4: Tensor, which_R: Tensor) -> list[int]:
    found: list[int] = spans_R4[which_R][0].tolist()
    return found


def _of(batch: Batch) -> str:
    return f" (samples {', '.join(batch.sample_ids)})" if batch.sample_ids else ""
