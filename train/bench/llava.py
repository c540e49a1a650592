"""The references: transformers' LlavaForConditionalGeneration as TRL and the LLaVA line train it.

(a) One right-padded row per sample, logits at every position, the model's own loss. (a+) adds what a
careful user would: samples of like length together, logits only where there is a target, torch.compile.
Sources: TRL, trl/trainer/sft_trainer.py (collator) and transformers, trainer.py (num_items_in_batch);
LLaVA, llava/train/train.py (collator) and llava_trainer.py (length groups).
Shape legend: B rows, T positions, P pictures, K patches, D encoder width, V vocabulary.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn
from transformers import LlavaConfig, LlavaForConditionalGeneration

from prismcap.data.schema import IGNORE_INDEX, Encoded
from prismcap.model.attention import FLATTENED
from prismcap.model.build import build_captioner
from prismcap.model.captioner import Captioner
from prismcap.model.kernels import decoder_layers
from prismcap.model.precision import autocast
from prismcap.model.trainable import prepare_stage
from prismcap.model.vision._huggingface import TowerEncoder
from prismcap.train.bench.cases import LLMS, TrainCase, model_config, stage_config
from prismcap.train.bench.contender import StepFigures
from prismcap.train.bench.job import UnfitError
from prismcap.train.bench.memory import available_mb
from prismcap.train.bench.samples import DrawnFeatures
from prismcap.train.flops import BatchShape, FlopModel, Flops

# bytes for each logit while the loss is taken: bf16 and fp32 copies, log-softmax, and its gradients in both
_BYTES_PER_LOGIT = 16
# of the free memory; the rest is for weights, activations and the other contenders
_LARGEST_SHARE = 0.5


@dataclass(frozen=True)
class LlavaOptions:
    """rows: of a padded micro-batch. tuned: length groups, and logits only where there is a target."""

    rows: int
    tuned: bool = False
    compiled: bool = False


class Llava:
    """A plain training loop around LlavaForConditionalGeneration."""

    def __init__(self, case: TrainCase, device: torch.device, options: LlavaOptions) -> None:
        self.case, self.device, self.options = case, device, options
        self.image_token = LLMS[case.size]["vocab_size"] - 1
        captioner = build_captioner(model_config(case.size, case.visual_tokens), seed=case.seed)
        prepare_stage(captioner, stage_config(case, compiled=False).train, seed=case.seed)
        # padded rows have a mask, and with it the whole square is computed; a single row has none, and SDPA's
        # kernel leaves out what is hidden, as FlashAttention's does
        attention = "sdpa" if options.rows > 1 else FLATTENED[0]
        self.flop_model = replace(FlopModel.of(captioner), implementation=attention)
        self.model = llava_of(captioner, self.image_token)
        del captioner
        gc.collect()
        stage = stage_config(case, compiled=False)
        parts = {"connector": self.model.model.multi_modal_projector, "llm": self.model.model.language_model}
        self.model.requires_grad_(False)
        for group in stage.train:
            parts[group].requires_grad_(True)
        self.model.to(device).train()
        groups = [
            {"params": list(parts[name].parameters()), "lr": one.lr} for name, one in stage.train.items()
        ]
        settings = stage.optimizer
        self.optimizer = torch.optim.AdamW(
            groups, betas=settings.betas, eps=settings.eps, weight_decay=0.0, fused=True
        )
        self.clip_norm = settings.clip_norm
        if options.compiled:
            # as model/kernels.py does it for ours: thirty unrolled layers would compile for many minutes
            for layer in decoder_layers(self.model.model.language_model):
                layer.compile(dynamic=True)

    def step(self, samples: Sequence[Encoded], features: DrawnFeatures) -> StepFigures:
        """Pad the samples and train on them, gradients accumulated over micro-batches."""
        started_s = time.perf_counter()
        batches = [padded(rows, features, self.image_token) for rows in self._groups(samples)]
        batching_s = time.perf_counter() - started_s
        num_targets = sum(sample.num_target_tokens for sample in samples)
        losses = []
        for batch in batches:
            inputs = {name: value.to(self.device) for name, value in batch.items()}
            if self.options.tuned:
                inputs |= where_supervised(inputs["labels"])
            with autocast(self.device, self.case.precision):
                loss = self.model(**inputs, num_items_in_batch=num_targets, use_cache=False).loss
            if loss.requires_grad:  # text alone reaches nothing that stage align trains
                loss.backward()
            losses.append(loss.detach())
        trained = [weight for group in self.optimizer.param_groups for weight in group["params"]]
        torch.nn.utils.clip_grad_norm_(trained, self.clip_norm)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return StepFigures(
            loss=sum(float(loss) for loss in losses),
            num_positions=sum(batch["input_ids"].numel() for batch in batches),
            batching_s=batching_s,
        )

    def flops(self, samples: Sequence[Encoded], features: DrawnFeatures) -> Flops:  # noqa: ARG002
        """See Contender."""
        groups = self._groups(samples)
        flops = self.flop_model.step([_shape(group) for group in groups])
        if self.options.tuned:
            num_logits = sum(sample.num_target_tokens for sample in samples)
        else:
            num_logits = sum(len(group) * max(map(len, group)) for group in groups)
        head = self.flop_model.head.executed * num_logits  # of one piece: nothing is made again
        return replace(flops, executed={**flops.executed, "head": head})

    def _groups(self, samples: Sequence[Encoded]) -> list[list[Encoded]]:
        rows = self.options.rows
        ordered = sorted(samples, key=len, reverse=True) if self.options.tuned else list(samples)
        groups = [ordered[i : i + rows] for i in range(0, len(ordered), rows)]
        if self.device.type == "cpu":
            self._check_room(groups)
        return groups

    def _check_room(self, groups: Sequence[Sequence[Encoded]]) -> None:
        """Rather than have the system kill a process, perhaps somebody else's."""
        if self.options.tuned:
            largest = max(sum(sample.num_target_tokens for sample in group) for group in groups)
        else:
            largest = max(len(group) * max(len(sample) for sample in group) for group in groups)
        needed_mb = largest * LLMS[self.case.size]["vocab_size"] * _BYTES_PER_LOGIT / 1e6
        free_mb = available_mb()
        if free_mb is not None and needed_mb > _LARGEST_SHARE * free_mb:
            raise UnfitError(
                f"{self.options.rows} padded rows: the logits alone need about {needed_mb / 1000:.1f} GB, "
                f"and {free_mb / 1000:.1f} GB are free"
            )


def _shape(group: Sequence[Encoded]) -> BatchShape:
    return BatchShape(
        rows=len(group),
        row_tokens=max(map(len, group)),
        segments=tuple(map(len, group)),
        targets=sum(sample.num_target_tokens for sample in group),
        tiles=sum(len(sample.spans) for sample in group),
        cached_features=True,
    )


def llava_of(captioner: Captioner, image_token: int) -> Any:
    """transformers' model with the captioner's own weights and SDPA, its tower handing cached features on."""
    encoder, llm, layers = captioner.vision_encoder, captioner.llm, captioner.connector.layers
    assert isinstance(encoder, TowerEncoder)
    assert isinstance(layers, nn.Sequential)
    config = LlavaConfig(
        vision_config=encoder.tower.config.to_dict(),
        text_config=llm.config.to_dict(),
        image_token_index=image_token,
        vision_feature_layer=-1,
        vision_feature_select_strategy="full",
        projector_hidden_act="gelu",
        tie_word_embeddings=llm.config.tie_word_embeddings,
    )
    llava = LlavaForConditionalGeneration._from_config(config, attn_implementation="sdpa")
    llava.model.language_model.load_state_dict(llm.model.state_dict())
    llava.lm_head.load_state_dict(llm.lm_head.state_dict())
    llava.model.multi_modal_projector.linear_1.load_state_dict(layers[0].state_dict())
    llava.model.multi_modal_projector.linear_2.load_state_dict(layers[2].state_dict())
    llava.model.vision_tower = CachedTower(llava.model.vision_tower)
    return llava.float()


class CachedTower(nn.Module):
    """Takes features_PKD in place of pictures, and gives them back as its only hidden state."""

    def __init__(self, tower: nn.Module) -> None:
        super().__init__()
        self.tower = tower  # kept, unused, as our captioner keeps its own

    def forward(self, pixel_values: Tensor, **_: Any) -> SimpleNamespace:
        return SimpleNamespace(hidden_states=(pixel_values,), pooler_output=None)


def padded(samples: Sequence[Encoded], features: DrawnFeatures, image_token: int) -> dict[str, Tensor]:
    """A micro-batch, padded on the right to its longest sample: input_ids, attention_mask and labels, long
    [B, T], and pixel_values (features_PKD) where there are pictures."""
    shape = (len(samples), max(len(sample) for sample in samples))
    input_ids = torch.zeros(shape, dtype=torch.long)
    labels = torch.full(shape, IGNORE_INDEX)
    mask = torch.zeros(shape, dtype=torch.long)
    pictures = []
    for row, sample in enumerate(samples):
        input_ids[row, : len(sample)] = sample.input_ids
        labels[row, : len(sample)] = sample.labels
        mask[row, : len(sample)] = 1
        for image, start, size in sample.spans:
            input_ids[row, start : start + size] = image_token
            pictures.append(features.read(sample.images[image])[0])
    batch = {"input_ids": input_ids, "attention_mask": mask, "labels": labels}
    return batch | ({"pixel_values": torch.cat(pictures)} if pictures else {})


def where_supervised(labels_BT: Tensor) -> dict[str, Tensor]:
    """What makes the model compute logits, and its loss, only at positions whose next token is a target."""
    next_BT = nn.functional.pad(labels_BT[:, 1:], (0, 1), value=IGNORE_INDEX)
    keep_BT = next_BT != IGNORE_INDEX
    return {"logits_to_keep": keep_BT, "shift_labels": next_BT[keep_BT]}
