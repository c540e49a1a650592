"""The page shows what the model gets: every token once, coloured by its label, data never as markup."""

from __future__ import annotations

import base64
import io
import json
import re
from pathlib import Path

import numpy as np
import pytest
import yaml
from click.testing import CliRunner
from PIL import Image
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from prismcap.configs.errors import ConfigError
from prismcap.configs.schema.base import Component
from prismcap.configs.schema.data import DataConfig
from prismcap.data.encode import Encoder, build_encoder
from prismcap.data.inspect import Inspection, inspect_mix, token_runs, write_page
from prismcap.data.mix import Mix, build_mix
from prismcap.data.schema import DataError, ImageSpec, TokenSpec
from prismcap.data.sources._contract import SourceContext
from prismcap.scripts.cli import cli

SPEC = ImageSpec(16, (0.5,) * 3, (0.5,) * 3, "pad")


@pytest.fixture(scope="module")
def encoder() -> Encoder:
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {letter: i for i, letter in enumerate(letters)}
    backend = Tokenizer(models.BPE(vocabulary, []))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    from tokenizers.decoders import ByteLevel

    backend.decoder = ByteLevel()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="</s>")
    return build_encoder(Component(name="vicuna_v1", system=None), tokenizer, TokenSpec(3), 120)


@pytest.fixture()
def mix(tmp_path: Path) -> Mix:
    Image.new("RGB", (8, 4), (255, 0, 0)).save(tmp_path / "red.png")
    evil = "<script>alert(1)</script> ü"

    def talk(question: str, answer: str) -> list[dict[str, str]]:
        return [{"from": "human", "value": question}, {"from": "gpt", "value": answer}]

    rows = [
        {
            "id": "seen",
            "image": ["red.png", "red.png"],
            "conversations": talk(f"<image><image>{evil}", "Yes <b>"),
        },
        {"id": "long", "conversations": talk("q", "x" * 200)},
        {"id": "lost", "image": "gone.png", "conversations": talk("q", "a")},
        {"id": "none", "conversations": []},
    ]
    path = tmp_path / "rows.json"
    path.write_text(json.dumps(rows))
    config = DataConfig.model_validate({"mix": [{"name": "llava_json", "path": str(path)}]})
    return build_mix(config, SourceContext())


def test_the_inspection_tells_what_the_model_gets(mix: Mix, encoder: Encoder) -> None:
    inspection = inspect_mix(mix, encoder, SPEC, num=10)
    assert inspection.num_tried == 4
    assert inspection.num_rejected == {"image_missing": 1, "no_conversations": 1}
    assert any("gone.png" in message for message in inspection.messages)
    samples = {sample.id: sample for sample in inspection.samples}
    assert set(samples) == {"seen", "long"}

    seen = samples["seen"]
    assert [(run.kind, run.text, run.num_tokens) for run in seen.runs if run.kind == "image"] == [
        ("image", "1", 3),
        ("image", "2", 3),
    ]
    assert "".join(run.text for run in seen.runs if run.kind == "trained") == " Yes <b></s>"
    text = "".join(run.text for run in seen.runs if run.kind == "context")
    assert text == "USER: \n\n<script>alert(1)</script> ü ASSISTANT:"
    assert sum(run.num_tokens for run in seen.runs) == seen.num_tokens
    assert samples["long"].num_tokens == 120 and samples["long"].cut_tokens > 80

    header, data = seen.tiles[0].split(",", 1)
    tile = np.asarray(Image.open(io.BytesIO(base64.b64decode(data))))
    assert header == "data:image/png;base64" and tile.shape == (16, 16, 3)
    assert (tile[8, 8] == (255, 0, 0)).all() and (tile[0, 0] == 127).all(), "as the model sees it: padded"


def test_only_as_many_as_asked(mix: Mix, encoder: Encoder) -> None:
    assert len(inspect_mix(mix, encoder, SPEC, num=1).samples) == 1


def test_the_page_is_one_file_and_escapes_the_data(mix: Mix, encoder: Encoder, tmp_path: Path) -> None:
    path = tmp_path / "new" / "page.html"
    write_page(inspect_mix(mix, encoder, SPEC, num=10), path, "demo · align")
    page = path.read_text(encoding="utf-8")
    assert "<script" not in page and "&lt;script&gt;alert(1)" in page
    assert '<span class="trained" title="' in page and "Yes &lt;b&gt;&lt;/s&gt;</span>" in page
    assert "picture 2 · 3" in page and "cut off" in page and "image_missing" in page
    links = re.findall(r'(?:src|href)="(?!data:)', page)
    assert not links, "self-contained"
    write_page(Inspection((), 0, {}, ()), path, "empty")
    assert "None was rejected" in path.read_text(encoding="utf-8")


def test_the_command_writes_the_page(mix: Mix, tmp_path: Path) -> None:
    assert len(mix) == 4  # the fixture wrote rows.json here
    tower = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 1}
    llm = {**tower, "model_type": "llama", "num_key_value_heads": 1}
    config = {
        "name": "look",
        "output_dir": str(tmp_path / "out"),
        "model": {
            "vision_encoder": {
                "name": "clip",
                "layer": -1,
                "config": {**tower, "image_size": 28, "patch_size": 14},
            },
            "connector": {"name": "linear"},
            "llm": {"name": "random", "config": llm, "tokenizer": "cache:models/smollm2-135m-instruct"},
        },
        "stages": {
            "align": {
                "train": {"connector": {"lr": 1.0}},
                "template": {"name": "chatml"},
                "schedule": {"epochs": 1},
                "data": {"mix": [{"name": "llava_json", "path": str(tmp_path / "rows.json")}]},
            }
        },
    }
    path = tmp_path / "run.yaml"
    path.write_text(yaml.safe_dump(config))
    result = CliRunner().invoke(cli, ["data", "inspect", str(path), "--num", "2", "seed=1"])
    assert result.exit_code == 0, result.output
    assert "2 samples shown" in result.output
    page = (tmp_path / "out" / "look" / "inspect-align.html").read_text(encoding="utf-8")
    assert "picture 1 · 4" in page and "look · align" in page

    unknown = CliRunner().invoke(cli, ["data", "inspect", str(path), "--stage", "algin"])
    assert isinstance(unknown.exception, ConfigError) and "'align'" in str(unknown.exception)
    gone = CliRunner().invoke(cli, ["data", "inspect", str(path), "stages.align.data.mix.0.path=gone.json"])
    assert isinstance(gone.exception, ConfigError) and "gone.json" in str(gone.exception)


def test_neighbouring_showings_of_one_picture_stay_apart(mix: Mix, encoder: Encoder) -> None:
    sample = next(mix.sources[0][0][i] for i in range(4) if mix.sources[0][0][i].id == "seen")
    runs = list(token_runs(encoder.encode(sample), encoder))
    assert [run.num_tokens for run in runs if run.kind == "image"] == [3, 3]


def test_a_page_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for path in (tmp_path, tmp_path / "file" / "page.html"):
        with pytest.raises(DataError, match=f"{path}: the page cannot be written.*--out"):
            write_page(Inspection((), 0, {}, ()), path, "lost")
