"""`transformers` with model type `prismcap`, for custom exports: their classes come from this package.

Started as a module by `prismcap serve`; the code that lies in an export is not run.
"""

from __future__ import annotations


def register_for_serving() -> None:
    """Make `transformers serve` load model type `prismcap`, as a model of pictures and text."""
    from transformers import AutoModelForMultimodalLM
    from transformers.models.auto.modeling_auto import MODEL_FOR_MULTIMODAL_LM_MAPPING_NAMES

    from prismcap.model.hf.configuration_prismcap import PrismcapConfig
    from prismcap.model.hf.load import register
    from prismcap.model.hf.modeling_prismcap import PrismcapForConditionalGeneration

    register()
    AutoModelForMultimodalLM.register(PrismcapConfig, PrismcapForConditionalGeneration, exist_ok=True)
    # the server looks a class's kind up by its name in this table
    MODEL_FOR_MULTIMODAL_LM_MAPPING_NAMES[PrismcapConfig.model_type] = (
        PrismcapForConditionalGeneration.__name__
    )


if __name__ == "__main__":
    from transformers.cli.transformers import main

    register_for_serving()
    main()
