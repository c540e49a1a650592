"""The `prismcap` command. Each command is one file of scripts/commands/, imported when it is used."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable
from typing import Any

import click

from prismcap.configs.errors import ConfigError, DataError, MissingExtraError
from prismcap.scripts.groups import NamingGroup

# name -> (module:attribute, one line for --help); the modules are not imported for --help
COMMANDS = {
    "train": ("train:train", "Train every stage of a config in this process (torchrun for several)."),
    "doctor": ("doctor:doctor", "Check a config: data, masks, memory, disk, saving; errors exit with 1."),
    "plan": ("plan:plan", "Memory, time and cost of a config on other GPUs, without weights."),
    "recipes": ("recipes:recipes", "The recipes: data, what trains, memory and time of each stage."),
    "export": ("export:export", "Write a trained run as a Hugging Face model directory."),
    "caption": ("caption:caption", "Caption pictures with an exported model."),
    "serve": ("serve:serve", "Serve an exported model: OpenAI-compatible, and a page for a browser."),
    "evaluate": ("evaluate:evaluate", "Measure a run on its held-out splits, with controls."),
    "metrics": ("metrics:metrics", "Measure a file of captions: BLEU, CIDEr, CHAIR, POPE, … with intervals."),
    "prism": ("prism:prism", "Perceive, then reason: measure the two apart on any benchmark."),
    "ablate": ("ablate:ablate", "Run an ablation: its cells, their figures, and what differs for sure."),
    "judge": ("judge:judge", "Have answers judged, by a model or by people: LLaVA-Bench, OwlEval, …"),
    "report": ("report:report", "Draw a run, or several side by side, as one HTML page."),
    "convert": ("convert:convert", "Rewrite InternLM2 as a LLaMA, which needs no code of its own."),
    "import": ("import_:import_", "Bring released weights of LLaVA, MiniGPT-4, … into a run's folder."),
    "config": ("config:config", "Show or validate a config."),
    "data": ("data:data", "Look at training data as the model sees it."),
    "bench": ("bench:bench", "Measure speed and memory against references in the same run."),
    "fetch": ("fetch:fetch", "Fetch the pictures and small models of the demo."),
}


class LazyGroup(NamingGroup):
    """Knows its commands by name and imports one only to run it, so that --help is instant."""

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:  # noqa: ARG002
        if cmd_name not in COMMANDS:
            return None
        module, attribute = COMMANDS[cmd_name][0].split(":")
        loaded: Any = importlib.import_module(f"prismcap.scripts.commands.{module}")
        command: click.Command = getattr(loaded, attribute)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:  # noqa: ARG002
        with formatter.section("Commands"):
            formatter.write_dl([(name, text) for name, (_, text) in COMMANDS.items()])


@click.group(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="prismcap")
def cli() -> None:
    """Train, export and measure perception-focused captioners.

    Start with `scripts/demo.sh --quick`, or `prismcap config show demo/scenes`.
    """


def run(command: Callable[[], object]) -> None:
    """Run a command; a user's mistake is one clear message and exit code 2, without a traceback."""
    try:
        command()
    except (ConfigError, DataError, MissingExtraError) as error:
        click.echo(f"Error: {error}", err=True)
        sys.exit(2)


def main() -> None:
    """The entry point `prismcap`."""
    run(cli)


if __name__ == "__main__":
    main()
