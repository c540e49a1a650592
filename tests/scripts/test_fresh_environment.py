"""A run, exported by the command, captions where transformers is and this project is not: 5.x and 4.57."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import sysconfig
import venv
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from tiny_run import make_run, run_values
from torch import Tensor

from prismcap.configs.registry import component_options
from prismcap.data.encode import Encoder
from prismcap.data.image import to_tiles
from prismcap.data.schema import IGNORE_INDEX, Batch, Encoded, ImagePart, Message, TextPart
from prismcap.model.captioner import Captioner
from prismcap.model.generate import generate
from prismcap.model.restore import load_trained
from prismcap.scripts.exporting import export_inputs

pytestmark = pytest.mark.slow
WORKER = Path(__file__).parent / "workers" / "caption_elsewhere.py"
# what 4.57 pins below our own versions; the rest of what it needs is shared
VERSIONS = {
    "5": (),
    "4.57": ("transformers==4.57.6", "huggingface_hub==0.36.0", "tokenizers==0.22.1"),
}
PROMPT = "Describe the picture."
MAX_NEW_TOKENS = 8
SIZES = [(90, 40), (37, 83), (32, 32)]
# fp32 over another order of sums: 1.6e-5 was seen on a CPU without AVX-512
LOGITS_ATOL = 3e-5


@pytest.fixture(scope="module", params=list(VERSIONS))
def python(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The Python of a new environment: packages of its own, then this one's, and no editable install."""
    folder = tmp_path_factory.mktemp("fresh") / f"transformers-{request.param}"
    venv.create(folder, symlinks=True)
    site = Path(sysconfig.get_path("purelib", "venv", {"base": str(folder), "platbase": str(folder)}))
    if VERSIONS[request.param]:
        pip = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--target", str(site)]
        done = subprocess.run(
            [*pip, *VERSIONS[request.param]], capture_output=True, text=True, check=False, timeout=300
        )
        if done.returncode != 0:
            pytest.skip(f"transformers {request.param} cannot be installed: {done.stderr.strip()[-300:]}")
    # a folder that a .pth file names is searched; its own .pth files, as of editable installs, are not read
    (site / "shared.pth").write_text(f"{Path(torch.__file__).parents[1]}\n")
    return folder / "bin" / "python"


def prismcap(*arguments: str | Path) -> None:
    """A command as it is typed."""
    command = [sys.executable, "-m", "prismcap.scripts.cli", *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]


def pictures(folder: Path) -> list[Path]:
    generator = torch.Generator().manual_seed(0)
    found = []
    for number, (width, height) in enumerate(SIZES):
        coarse = torch.randint(0, 256, (5, 4, 3), generator=generator, dtype=torch.uint8)
        found.append(folder / f"{number}.png")
        Image.fromarray(coarse.numpy()).resize((width, height), Image.Resampling.BICUBIC).save(found[-1])
    return found


@dataclass(frozen=True)
class Exported:
    run: Path
    model: Path
    pictures: list[Path]


@pytest.fixture(scope="module", params=["random", "trained"])
def exported(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Exported:
    """A run of SigLIP, MLP and a LLaMA: random weights, or those after `prismcap train`."""
    root = tmp_path_factory.mktemp("runs")
    run, images = root / request.param, pictures(root)
    if request.param == "random":
        make_run(run, {"name": "mlp"})
    else:
        train(run, images)
    prismcap("export", run, root / "model")
    return Exported(run, root / "model", images)


def train(run: Path, images: list[Path]) -> None:
    """Two steps on the pictures: everything but the encoder."""
    rows = [
        {
            "image": image.name,
            "conversations": [
                {"from": "human", "value": f"<image>\n{PROMPT}"},
                {"from": "gpt", "value": f"Picture number {number}."},
            ],
        }
        for number, image in enumerate(images)
    ]
    path = run.parent / "rows.json"
    path.write_text(json.dumps(rows))
    values = run_values(run, {"name": "mlp"}, rows=str(path))
    stage = values["stages"]["align"]
    stage["data"]["mix"][0]["image_root"] = str(run.parent)
    stage |= {
        "train": {"connector": {"lr": 1e-2}, "llm": {"lr": 1e-2}},
        "schedule": {"max_steps": 2},
        "precision": "fp32",
        "batch": {"samples_per_step": 3},
    }
    config = run.parent / "config.yaml"
    config.write_text(json.dumps(values))  # which is YAML too
    prismcap("train", config)


class Given:
    """A picture as a prompt's; it is handed to the model as tiles."""

    def __init__(self, image: Image.Image) -> None:
        self.image = image

    def load(self) -> Image.Image:
        return self.image

    def fingerprint(self) -> str:
        return str(hash(self.image.tobytes()))


def own_answer(captioner: Captioner, config: Any, picture: Path) -> tuple[str, Tensor, Tensor]:
    """Caption, logits [T, V] and ids [T] of the training model, without anything of the export."""
    stage = list(config.stages.values())[-1]
    module, options = component_options("template", stage.template)
    template = module.build(options)
    spec, _ = export_inputs(captioner, config)
    image = Image.open(picture)
    encoder = Encoder(template, captioner.tokenizer, captioner.token_spec, max_tokens=500)
    prompt = encoder.encode_prompt([Message("user", (ImagePart(0), TextPart(PROMPT)))], [Given(image)])
    tiles = to_tiles(image, spec)
    (answer,) = generate(
        captioner, [prompt], tiles_P3SS=tiles, max_new_tokens=MAX_NEW_TOKENS, stop=template.spec.stop
    )
    with torch.no_grad():
        logits = captioner.logits(batch_of(prompt, tiles))[0]
    return answer.text, logits, prompt.input_ids


def batch_of(prompt: Encoded, tiles_P3SS: Tensor) -> Batch:
    """One row of one prompt with one picture."""
    _, start, length = (int(value) for value in prompt.spans[0])
    ids = prompt.input_ids[None]
    return Batch(
        input_ids=ids,
        labels=torch.full_like(ids, IGNORE_INDEX),
        position_ids=torch.arange(ids.shape[1])[None],
        segment_ids=torch.ones_like(ids),
        spans=torch.tensor([[0, 0, start, length]]),
        tile_image=torch.zeros(1, dtype=torch.long),
        image_sizes=torch.tensor([tiles_P3SS.shape[-2:]]),
        tiles=tiles_P3SS,
    )


def test_captions_and_logits_are_those_of_the_run(python: Path, exported: Exported, tmp_path: Path) -> None:
    assert not list(exported.model.glob("*.py"))
    order = {
        "model": str(exported.model),
        "pictures": [str(path) for path in exported.pictures],
        "prompt": PROMPT,
        "max_new_tokens": MAX_NEW_TOKENS,
    }
    (tmp_path / "order.json").write_text(json.dumps(order))
    # -I: neither PYTHONPATH nor the folder of the script, nor the user's own packages
    command = [str(python), "-I", str(WORKER), str(tmp_path / "order.json"), str(tmp_path / "found.pt")]
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path / "home")}
    done = subprocess.run(
        command, capture_output=True, text=True, check=False, timeout=300, env=environment, cwd=tmp_path
    )
    assert done.returncode == 0, done.stderr[-4000:]
    found = torch.load(tmp_path / "found.pt", weights_only=True)
    assert found["version"].startswith(python.parents[1].name.removeprefix("transformers-"))
    assert not any(found["report"].values()), found["report"]
    captioner, config = load_trained(exported.run)
    captioner.eval()
    rows = []
    for picture, answer in zip(exported.pictures, found["answers"], strict=True):
        caption, logits, ids = own_answer(captioner, config, picture)
        assert answer["caption"].strip() == caption.strip() and caption
        is_text = answer["input_ids"] < logits.shape[1]
        assert torch.equal(answer["input_ids"][is_text], ids[is_text])
        assert (answer["logits"][:, : logits.shape[1]] - logits).abs().max() < LOGITS_ATOL
        rows.append(logits[-1])
    assert (rows[0] - rows[1]).abs().max() > 1e-3, "the pictures must matter"
