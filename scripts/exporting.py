"""What an export needs to know of a run, put together from its config."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from prismcap.configs.errors import ConfigError
from prismcap.configs.registry import component_options
from prismcap.configs.schema.run import RunConfig
from prismcap.configs.schema.stage import StageConfig
from prismcap.data.schema import ImageSpec
from prismcap.data.templates._contract import Template
from prismcap.data.templates._jinja import chat_template
from prismcap.model.captioner import Captioner
from prismcap.model.hf.dry_run import dry_run
from prismcap.model.hf.export import ExportInfo
from prismcap.scripts.run_card import origin, run_sections, trained_here


def export_inputs(
    captioner: Captioner, config: RunConfig, run: Path | None = None
) -> tuple[ImageSpec, ExportInfo]:
    """The image spec and the template of the last stage: what the finished model was trained to see.

    run: the folder whose figures go into the card, and which says whether weights were imported. Raises
    ConfigError when that stage is contrastive.
    """
    name, stage = list(config.stages.items())[-1]
    if stage.kind == "contrastive":
        raise ConfigError(
            f"stages.{name}: the last stage is contrastive, so there is no captioner to export yet: add "
            "stages that train connector and llm (to train without them: --no-dry-export)"
        )
    module, options = component_options("template", stage.template)
    template: Template = module.build(options)
    info = ExportInfo(
        name=config.name,
        template=template.spec.name,
        chat_template=chat_template(template),
        stop=template.spec.stop,
        prompt=config.prompt,
        template_options=options.model_dump(mode="json", exclude_unset=True),
        origin=origin(config, run),
        details={
            "Stages": "; ".join(_trained(name, stage) for name, stage in trained_here(config, run).items())
            or "none of this run's own",
            "Vision encoder": config.model.vision_encoder.name,
            "Connector": config.model.connector.name,
            "LLM": config.model.llm.name,
        },
        sections=run_sections(config, run),
    )
    return captioner.image_spec_of(stage.data), info


def _trained(name: str, stage: StageConfig) -> str:
    return (
        f"{name}: {', '.join(f'{group} ({group_config.how})' for group, group_config in stage.train.items())}"
    )


def dry_export(say: Callable[[str], None]) -> Callable[[Captioner, RunConfig], None]:
    """A hook of run_training: save and reload once, so that no run fails in its very last minute."""
    from prismcap.train.runfolder import run_folder

    def check(captioner: Captioner, config: RunConfig) -> None:
        image_spec, info = export_inputs(captioner, config)
        say("Trying the export once before training …")
        # in the run's own folder: the system's temporary one is often too small for a model's weights
        folder = run_folder(config)
        folder.mkdir(parents=True, exist_ok=True)
        difference = dry_run(captioner, image_spec=image_spec, info=info, folder=folder)
        say(f"The export reloads and agrees with the model (largest difference {difference:.1e}).")

    return check
