"""The README.md of an export."""

from __future__ import annotations

from typing import TYPE_CHECKING

from prismcap.data.schema import ImageSpec

if TYPE_CHECKING:
    from prismcap.model.hf.export import ExportInfo

GEOMETRY = {
    "resize": "squashed to a square",
    "center_crop": "shortest side resized, the middle cut out",
    "pad": "padded to a square with the mean colour, then resized",
    "anyres": "the whole picture and the tiles of its best grid, each",
}
NATIVE_CLASSES = {
    "llava": "LlavaForConditionalGeneration",
    "llava_next": "LlavaNextForConditionalGeneration",
    "blip2": "Blip2ForConditionalGeneration",
}
NATIVE = """\
This is a `{model_class}`: transformers 4.57 and 5 load it without remote code.
"""
CUSTOM = """\
**This model comes with its own code** (`configuration_prismcap.py`, `connectors_prismcap.py` and
`modeling_prismcap.py`, about 420 lines in all: read them), which transformers runs only with
`trust_remote_code=True`. `prismcap caption` uses the same classes from its own package and runs nothing
from this folder. The processor is transformers' own.
"""


ADAPTER = """\
**The LoRA of the last stage is not merged**: it lies in `adapter/`, and the LLM here is the one before that
stage. `prismcap caption` puts both together; in Python, after loading:
`model = peft.PeftModel.from_pretrained(model, f"{folder}/adapter").merge_and_unload()`.

"""


def model_card(info: ExportInfo, format: str, image_spec: ImageSpec, weights: str = "merged") -> str:
    """What the model is, and lines that can be pasted to use it."""
    native = NATIVE_CLASSES.get(format)
    trust = "" if native else ", trust_remote_code=True"
    library = "pipeline_tag: image-text-to-text\nlibrary_name: transformers\n"
    tags = "tags:\n- image-captioning\n- prismcap\n"
    rows = "".join(f"| {key} | {value} |\n" for key, value in info.details.items())
    table = f"| | |\n|---|---|\n{rows}\n" if rows else ""
    return f"""---
{library}{tags}---

# {info.name}

A perception-focused captioner (vision encoder, connector and language model). {info.origin}

{NATIVE.format(model_class=native) if native else CUSTOM}
{ADAPTER if weights == "adapter" else ""}{table}{info.sections}## Use

```python
from PIL import Image
from transformers import AutoModelForImageTextToText, AutoProcessor

folder = "."  # this folder, or its name on the hub
model = AutoModelForImageTextToText.from_pretrained(folder{trust}).eval()
processor = AutoProcessor.from_pretrained(folder)
content = [
    {{"type": "image", "image": Image.open("picture.jpg").convert("RGB")}},
    {{"type": "text", "text": {info.prompt!r}}},
]
inputs = processor.apply_chat_template(
    [{{"role": "user", "content": content}}],
    add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt",
)
output = model.generate(**inputs, max_new_tokens=128)
print(processor.decode(output[0, inputs["input_ids"].shape[1]:], skip_special_tokens=True))
```

Or `prismcap caption {"FOLDER"} picture.jpg`.

## Input

- Pictures: RGB, {GEOMETRY[image_spec.geometry]}, {image_spec.size_px} x {image_spec.size_px} px, bicubic.
- Text: the `{info.template}` template (`chat_template.jinja`). The default prompt: {info.prompt!r}.
- An answer ends at {" or ".join(repr(text) for text in info.stop) or "the end-of-text token"}.
"""
