"""A captioner as the two files that llama.cpp takes: the LLM, and the rest as its multimodal projector."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from prismcap.configs.errors import ConfigError
from prismcap.data.schema import ImageSpec
from prismcap.model.captioner import Captioner
from prismcap.model.gguf.language import write_language
from prismcap.model.gguf.mmproj import why_not_mmproj, write_mmproj
from prismcap.model.hf.export import ExportInfo, Precision, marker
from prismcap.model.hf.files import MARKER, whole_folder, write_json
from prismcap.model.lora import lora_modules

CARD = """\
# {name}

A captioner as the two files of llama.cpp, which was never run on such files: the tests of prismcap read them
back with other programs. {origin} Bigger or smaller numbers: `llama-quantize model.gguf model-q8.gguf Q8_0`.

```
{line}
```

## Where llama.cpp differs from training

- Pictures: it pads them to a square with the mean colour of CLIP. This model was trained on pictures
  {geometry}{same}.
- Exact GELU, of the connector and of an encoder that has it: it takes tanh's approximation (differences below
  0.001 in an activation).
{class_token}"""
GEOMETRY = {
    "resize": "squashed to a square",
    "center_crop": "cut to the square in their middle",
    "pad": "padded to a square with the encoder's mean colour",
}
SAME = ": make them so before, or expect worse captions"
CLASS_TOKEN = """\
- CLIP's class token: builds with the fault of https://github.com/ggml-org/llama.cpp/issues/25814 put it last,
  and read every patch with the position of its neighbour. Check that yours puts it first. SigLIP has none.
"""


def export_gguf(
    captioner: Captioner,
    destination: Path,
    *,
    image_spec: ImageSpec,
    info: ExportInfo,
    precision: Precision = "fp32",
) -> Path:
    """Write `destination`, whole or not at all: model.gguf and mmproj.gguf; an older export is replaced.

    Raises ConfigError when llama.cpp cannot compute the captioner, LoRA is not merged, or `destination` holds
    something else; OSError when it cannot be written.
    """
    if lora_modules(captioner):
        raise ConfigError("LoRA is not merged into the weights: export after the stage has finished")
    obstacle = why_not_mmproj(captioner)
    if obstacle is None and image_spec.geometry not in GEOMETRY:
        obstacle = f"the model sees pictures in tiles (data.geometry: {image_spec.geometry})"
    if obstacle is not None:
        raise ConfigError(f"--format gguf: {obstacle}; take --format auto")
    if captioner.tokenizer is None:
        raise ConfigError("--format gguf: the captioner has no tokenizer: give llm.tokenizer")
    with whole_folder(Path(destination)) as folder:
        write_mmproj(folder / "mmproj.gguf", captioner, info.name, precision)
        write_language(
            folder / "model.gguf",
            captioner.llm,
            captioner.tokenizer,
            info.chat_template,
            info.name,
            precision,
        )
        write_json(folder / MARKER, marker(info, "gguf", image_spec))
        (folder / "README.md").write_text(_card(captioner, image_spec, info), encoding="utf-8")
    return Path(destination)


def _has_class_token(encoder: Any) -> bool:
    return bool(encoder.architecture.num_class_tokens)


def caption_line(folder: Path, prompt: str, stop: Sequence[str]) -> str:
    """What a shell takes to caption `picture.jpg` with the files in `folder`."""
    words = ["llama-mtmd-cli", "-m", str(folder / "model.gguf"), "--mmproj", str(folder / "mmproj.gguf")]
    words += ["--jinja", "--temp", "0", "--image", "picture.jpg", "-p", prompt]
    return shlex.join([*words, *(word for text in stop for word in ("-r", text))])


def _card(captioner: Captioner, image_spec: ImageSpec, info: ExportInfo) -> str:
    return CARD.format(
        name=info.name,
        origin=info.origin,
        line=caption_line(Path(), info.prompt, info.stop),
        geometry=GEOMETRY[image_spec.geometry],
        same="" if image_spec.geometry == "pad" else SAME,
        class_token=CLASS_TOKEN if _has_class_token(captioner.vision_encoder) else "",
    )
