"""Captions with an export as one does who has transformers, any living version, and nothing of this project.

Usage: caption_elsewhere.py ORDER.json FOUND.pt; an order has model, pictures, prompt and max_new_tokens.
Nothing here says trust_remote_code.
"""

import json
import sys
from importlib.util import find_spec
from pathlib import Path

import torch
import transformers
from PIL import Image
from transformers import AutoImageProcessor, AutoModelForImageTextToText, AutoProcessor

assert find_spec("prismcap") is None, "this environment was to be without the project"
torch.set_num_threads(1)
order = json.loads(Path(sys.argv[1]).read_text())
model, report = AutoModelForImageTextToText.from_pretrained(order["model"], output_loading_info=True)
model.eval()
processor = AutoProcessor.from_pretrained(order["model"])
# PIL's pictures, as in training: the two lines of versions ask for them by different names
with_pil = {"use_fast": False} if transformers.__version__.startswith("4.") else {"backend": "pil"}
processor.image_processor = AutoImageProcessor.from_pretrained(order["model"], **with_pil)
answers = []
for picture in order["pictures"]:
    content = [{"type": "image", "image": Image.open(picture)}, {"type": "text", "text": order["prompt"]}]
    inputs = processor.apply_chat_template(
        [{"role": "user", "content": content}],
        add_generation_prompt=True,
        tokenize=True,
        return_dict=True,
        return_tensors="pt",
    )
    with torch.no_grad():
        logits = model(**inputs).logits[0]
        output = model.generate(**inputs, do_sample=False, max_new_tokens=order["max_new_tokens"])
    caption = processor.decode(output[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
    answers.append({"caption": caption, "logits": logits, "input_ids": inputs["input_ids"][0]})
found = {
    "version": transformers.__version__,
    "report": {key: sorted(map(str, value)) for key, value in report.items()},
    "answers": answers,
}
torch.save(found, sys.argv[2])
