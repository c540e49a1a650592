"""Loss curves of two tiny recipes, by a plain loop over transformers' LlavaForConditionalGeneration.

Nothing of prismcap is used: text, masks, padding, schedule and optimiser are written out here once more, so
that losses.json is an independent witness. Every step takes all rows, so no order of samples matters.

    python tests/assets/golden/make.py     # writes losses.json next to this file
"""

from __future__ import annotations

import json
import math
import platform
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from PIL import Image
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from torch import Tensor, nn

HERE = Path(__file__).parent
STEPS = 8
IGNORED = -100
LLAMA = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "tie_word_embeddings": False,
}
TOWER = {
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "image_size": 16,
    "patch_size": 8,
}
SPECIAL = ["<|im_start|>", "<|im_end|>", "</s>", "<image>"]
PATCHES = 4
VICUNA = (
    "A chat between a curious user and an artificial intelligence assistant. "
    "The assistant gives helpful, detailed, and polite answers to the user's questions."
)
# (text, supervised)
Pieces = list[tuple[str, bool]]


@dataclass(frozen=True)
class Stage:
    """rows: a file next to this one. trained: the starts of parameter names of
    LlavaForConditionalGeneration -> learning rate."""

    rows: str
    pieces: Callable[[list[str]], Pieces]
    trained: dict[str, float]
    schedule: Callable[[int], float]
    clip: float = 1.0
    weight_decay: float = 0.0


@dataclass(frozen=True)
class Recipe:
    family: str
    mean: tuple[float, ...]
    std: tuple[float, ...]
    stages: dict[str, Stage]


def plain(turns: list[str]) -> Pieces:
    """The picture, the first answer and a newline."""
    return [("<image>", False), (f"{turns[1]}\n", True)]


def chatml(turns: list[str]) -> Pieces:
    pieces: Pieces = []
    for question, answer in zip(turns[::2], turns[1::2], strict=True):
        pieces += [(f"<|im_start|>user\n{question}<|im_end|>\n<|im_start|>assistant\n", False)]
        pieces += [(f"{answer}<|im_end|>", True), ("\n", False)]
    return pieces


def vicuna(turns: list[str]) -> Pieces:
    pieces: Pieces = [(f"{VICUNA} ", False)]
    for question, answer in zip(turns[::2], turns[1::2], strict=True):
        pieces += [(f"USER: {question} ASSISTANT:", False), (f" {answer}</s>", True)]
    return pieces


def cosine(step: int) -> float:
    return (1 + math.cos(math.pi * step / STEPS)) / 2


def warm_linear(step: int) -> float:
    """Two steps up, then down."""
    return (step + 1) / 2 if step < 2 else 1 - (step - 2) / (STEPS - 2)


CONNECTOR, LLM, VISION = (
    "model.multi_modal_projector",
    ("model.language_model", "lm_head"),
    "model.vision_tower",
)
RECIPES = {
    "siglip_chatml": Recipe(
        "siglip",
        (0.5, 0.5, 0.5),
        (0.5, 0.5, 0.5),
        {
            "align": Stage("captions.json", plain, {CONNECTOR: 2e-1}, cosine),
            "instruct": Stage(
                "conversations.json", chatml, {CONNECTOR: 2e-3, **dict.fromkeys(LLM, 5e-3)}, cosine
            ),
        },
    ),
    "clip_vicuna": Recipe(
        "clip",
        # openai/CLIP, clip/clip.py
        (0.48145466, 0.4578275, 0.40821073),
        (0.26862954, 0.26130258, 0.27577711),
        {
            "align": Stage(
                "captions.json", plain, {CONNECTOR: 2e-1}, warm_linear, clip=0.5, weight_decay=0.1
            ),
            "instruct": Stage(
                "conversations.json",
                vicuna,
                {CONNECTOR: 2e-2, **dict.fromkeys(LLM, 1e-2), VISION: 2e-3},
                warm_linear,
                clip=0.5,
                weight_decay=0.1,
            ),
        },
    ),
}


def write_tokenizer(folder: Path) -> None:
    """One token per byte, and the special ones."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: i for i, token in enumerate([*SPECIAL, *alphabet])}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    fast = transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token="<|im_end|>",
        additional_special_tokens=[mark for mark in SPECIAL if mark != "<|im_end|>"],
    )
    fast.save_pretrained(folder)


@torch.no_grad()
def fill(module: nn.Module, salt: int) -> None:
    """Weights from a formula: the same with every version of every library."""
    for number, (name, parameter) in enumerate(sorted(module.named_parameters())):
        at = torch.arange(parameter.numel(), dtype=torch.float64)
        spread = torch.frac(torch.sin(at * 12.9898 + (salt * 100 + number) * 78.233) * 43758.5453)
        centre = 1.0 if "norm" in name and name.endswith("weight") else 0.0
        parameter.copy_((centre + 0.3 * spread).view_as(parameter))


def write_models(recipe: Recipe, folder: Path) -> Any:
    """The tower in folder/tower, LLM and tokenizer in folder/llm, and the whole as a LLaVA of transformers.
    What `fill(connector, 3)` makes of its two linear layers is theirs here too."""
    write_tokenizer(folder / "llm")
    llama = transformers.LlamaConfig(**LLAMA, vocab_size=len(SPECIAL) + 256)
    llm = transformers.LlamaForCausalLM(llama)
    kind = {"siglip": "Siglip", "clip": "CLIP"}[recipe.family]
    tower_config = getattr(transformers, f"{kind}VisionConfig")(**TOWER)
    tower = getattr(transformers, f"{kind}VisionModel")(tower_config)
    fill(llm, 1)
    fill(tower, 2)
    llm.save_pretrained(folder / "llm")
    tower.save_pretrained(folder / "tower")
    config = transformers.LlavaConfig(
        vision_config=tower_config.to_dict(),
        text_config=llama.to_dict(),
        image_token_index=SPECIAL.index("<image>"),
        vision_feature_layer=-2,
        vision_feature_select_strategy="default" if recipe.family == "clip" else "full",
        projector_hidden_act="gelu",
    )
    llava = transformers.LlavaForConditionalGeneration(config)
    llava.model.vision_tower.load_state_dict(tower.state_dict())
    llava.model.language_model.load_state_dict(llm.model.state_dict())
    llava.lm_head.load_state_dict(llm.lm_head.state_dict())
    projector = llava.model.multi_modal_projector
    fill(nn.Sequential(projector.linear_1, nn.GELU(), projector.linear_2), 3)
    return llava.train()


def inputs(recipe: Recipe, stage: Stage, tokenizer: Any) -> dict[str, Tensor]:
    """Every row, padded on the right, with as many image tokens as a picture has patches."""
    rows, pixels = [], []
    for row in json.loads((HERE / stage.rows).read_text()):
        ids: list[int] = []
        labels: list[int] = []
        for text, supervised in stage.pieces([turn["value"] for turn in row["conversations"]]):
            piece = tokenizer(
                text.replace("<image>", "<image>" * PATCHES), add_special_tokens=False
            ).input_ids
            ids += piece
            labels += piece if supervised else [IGNORED] * len(piece)
        rows.append((ids, labels))
        if "image" in row:
            picture = np.asarray(Image.open(HERE / row["image"]).convert("RGB"), dtype=np.float32) / 255
            pixels.append((picture - np.float32(recipe.mean)) / np.float32(recipe.std))
    length = max(len(ids) for ids, _ in rows)
    input_ids = torch.tensor([ids + [0] * (length - len(ids)) for ids, _ in rows])
    labels_BT = torch.tensor([labels + [IGNORED] * (length - len(labels)) for _, labels in rows])
    mask = torch.tensor([[1] * len(ids) + [0] * (length - len(ids)) for ids, _ in rows])
    tiles = torch.from_numpy(np.stack(pixels)).permute(0, 3, 1, 2).contiguous()
    return {"input_ids": input_ids, "labels": labels_BT, "attention_mask": mask, "pixel_values": tiles}


def train(llava: Any, recipe: Recipe, stage: Stage, tokenizer: Any) -> list[float]:
    """The loss of each step."""
    batch = inputs(recipe, stage, tokenizer)
    groups = []
    for name, parameter in llava.named_parameters():
        lr = next((lr for start, lr in stage.trained.items() if name.startswith(start)), None)
        parameter.requires_grad_(lr is not None)
        if lr is not None:
            decay = stage.weight_decay if parameter.ndim > 1 else 0.0
            groups.append({"params": [parameter], "lr": lr, "weight_decay": decay})
    # eps: else a gradient that is zero but for rounding (the bias of a key) moves its weight by a whole lr
    optimizer = torch.optim.AdamW(groups, betas=(0.9, 0.999), eps=1e-3)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, stage.schedule)
    losses = []
    for _ in range(STEPS):
        loss = llava(**batch, use_cache=False).loss
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_([p for group in groups for p in group["params"]], stage.clip)
        optimizer.step()
        schedule.step()
        losses.append(loss.item())
    return losses


def curves(name: str) -> dict[str, list[float]]:
    """The losses of a recipe by stage; the second stage goes on with the first one's weights."""
    recipe = RECIPES[name]
    with tempfile.TemporaryDirectory() as folder:
        llava = write_models(recipe, Path(folder))
        tokenizer = transformers.AutoTokenizer.from_pretrained(Path(folder) / "llm")
    return {key: train(llava, recipe, stage, tokenizer) for key, stage in recipe.stages.items()}


def main() -> None:
    torch.set_num_threads(1)
    values = {
        "made_by": "python tests/assets/golden/make.py",
        "versions": {
            "python": platform.python_version(),
            "torch": torch.__version__,
            "transformers": transformers.__version__,
        },
        "losses": {name: curves(name) for name in RECIPES},
    }
    (HERE / "losses.json").write_text(json.dumps(values, indent=1) + "\n")


if __name__ == "__main__":
    main()
