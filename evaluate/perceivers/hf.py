"""Any image-text-to-text model of transformers, from a folder or the hub, asked by its own chat template."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from prismcap.evaluate.local_models import local_device, model_identity
from prismcap.evaluate.perceivers._chat import ChatModel
from prismcap.evaluate.perceivers._contract import PerceiverContext
from prismcap.evaluate.perceivers._local import refuse_sampling
from prismcap.evaluate.perceivers._several import PictureOptions, ViewPerceiver
from prismcap.model.hf.load import Exported, load_exported
from prismcap.model.huggingface import local_or_hub


class Options(PictureOptions):
    """dtype: of the weights; auto: as they are saved."""

    model: str = Field(description="directory (or cache:…) or hub name")
    revision: str | None = Field(default=None, description="commit or tag of a hub name")
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    trust_remote_code: bool = Field(default=False, description="run code that comes with the model")


def build(options: Options, context: PerceiverContext) -> ViewPerceiver:
    """Raises ConfigError for a folder that is not there, and for sampling."""
    refuse_sampling(context)
    name = local_or_hub(options.model)

    def load() -> Exported:
        device = local_device(context.device)
        return load_exported(name, device, options.dtype, options.trust_remote_code, options.revision)

    def identity() -> str:
        return f"hf {model_identity(name, options.revision)} {options.dtype}"

    return ViewPerceiver(
        options, ChatModel(load, context.decoding, context.batch_size).describe_views, identity
    )
