"""`bench generate`: one batch of prompts against the same prompts one by one."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any, Literal

import torch

from prismcap.data.length_mixes import SampleLength
from prismcap.model.build import build_captioner
from prismcap.model.generate import generate
from prismcap.model.precision import autocast
from prismcap.train.bench import memory
from prismcap.train.bench.cases import LLMS, VISION_WIDTHS, GenerateCase, model_config
from prismcap.train.bench.job import Figures
from prismcap.train.bench.samples import DrawnFeatures, random_sample
from prismcap.train.distributed import pick_device


class GenerateJob:
    """Greedy decoding of all prompts, `batch_size` at a time."""

    def __init__(self, case: GenerateCase, way: Literal["batch", "one_by_one"]) -> None:
        self.case = case
        self.batch_size = case.num_prompts if way == "batch" else 1
        device = pick_device()
        self.captioner = build_captioner(model_config(case.size, case.visual_tokens), seed=case.seed)
        self.captioner.to(device)
        # autocast keeps its copy of a weight only when the weight requires a gradient (none is recorded)
        self.captioner.requires_grad_(case.precision == "bf16")
        vocab_size = LLMS[case.size]["vocab_size"]
        # the prompt's lengths differ a little, as those of questions do
        lengths = [
            SampleLength(max(2, case.prompt_tokens - number % 4), 1, 1, case.visual_tokens)
            for number in range(case.num_prompts)
        ]
        self.prompts = [random_sample(length, i, vocab_size, case.seed) for i, length in enumerate(lengths)]
        features = DrawnFeatures(case.visual_tokens, VISION_WIDTHS[case.size], case.seed)
        features.draw(self.prompts)
        self.features_PKD = torch.cat([features.read(prompt.images[0])[0] for prompt in self.prompts])
        memory.restart_peak()

    def run(self, step: int) -> Figures:  # noqa: ARG002 - every step is the same
        """Time and the tokens that came out."""
        tokens: list[list[int]] = []
        started_s = time.perf_counter()
        with torch.no_grad(), autocast(self.captioner.device, self.case.precision):
            for start in range(0, len(self.prompts), self.batch_size):
                part = slice(start, start + self.batch_size)
                generated = generate(
                    self.captioner,
                    self.prompts[part],
                    features_PKD=self.features_PKD[part],
                    max_new_tokens=self.case.max_new_tokens,
                )
                tokens += [list(one.token_ids) for one in generated]
        return {
            "time_s": time.perf_counter() - started_s,
            "tokens": tokens,
            "num_new_tokens": sum(len(one) for one in tokens),
            "peak_memory_mb": memory.peak_mb(),
        }


def build(spec: Mapping[str, Any]) -> GenerateJob:
    """The job of {"case": …, "way": "batch" | "one_by_one"}."""
    case = GenerateCase.model_validate(spec["case"])
    torch.set_num_threads(case.num_threads)
    return GenerateJob(case, spec["way"])
