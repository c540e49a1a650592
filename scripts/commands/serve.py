"""`prismcap serve MODEL`: an exported model behind an OpenAI-compatible address, and a page for a browser."""

from __future__ import annotations

import json
import shlex
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from prismcap.scripts.serving.backends import ServedExport
    from prismcap.scripts.serving.client import Address

PORT = click.IntRange(min=1, max=65535)


@click.command()
@click.argument("model")
@click.argument("options", nargs=-1, metavar="[-- SERVER OPTION...]")
@click.option("--host", default="127.0.0.1", show_default=True, help="0.0.0.0 for every machine.")
@click.option("--port", type=PORT, default=8000, show_default=True)
@click.option(
    "--backend",
    type=click.Choice(["transformers", "vllm"]),
    default="transformers",
    show_default=True,
    help="Whose server: `transformers serve`, or `vllm serve` where vLLM is installed.",
)
@click.option("--ui", is_flag=True, help="Also open a page for a browser.")
@click.option("--ui-port", type=PORT, default=7860, show_default=True, help="Where the page is.")
def serve(
    model: str, options: tuple[str, ...], host: str, port: int, backend: str, ui: bool, ui_port: int
) -> None:
    """Serve MODEL (an exported folder, or a run's with its export in model/) with the OpenAI protocol.

    /v1/chat/completions takes pictures as data URLs; /v1/models names the one model that is served. What
    follows `--` goes to the server: `prismcap serve MODEL -- --dtype bfloat16`. Ends with the server, and
    with its exit code (1 for a 0 before it answered); Ctrl-C and SIGTERM are handed on to it.
    """
    import tempfile

    from prismcap.scripts.serving.backends import BACKENDS, check_options
    from prismcap.scripts.serving.client import Address
    from prismcap.scripts.serving.page import answers_of, check_page, open_page
    from prismcap.scripts.serving.process import run_server

    check_options(options)
    export = read_export(model)
    address, page_address = Address(host, port), Address(host, ui_port)
    with ExitStack() as stack:
        scratch = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="prismcap-serve-")))
        command = BACKENDS[backend](export, address, options, scratch)
        check_free(address, "--port")
        if ui:
            check_page()
            check_free(page_address, "--ui-port")
            check_apart(port, ui_port)

        def on_ready() -> None:
            if ui:
                page = open_page(answers_of(export, address), export, page_address)
                stack.callback(page.close)
                click.echo(f"The page:  {page_address.url}")
            click.echo(f"Serving {export.name!r} at {address.url}/v1 (Ctrl-C ends it). Try it:")
            click.echo(curl_line(export, address))

        # without the user's options: one may hold a secret
        click.echo(f"Starting {shlex.join(command.arguments)}", err=True)
        if not address.is_private:
            click.echo(
                f"Warning: at {host} whoever reaches this machine can use the model, and through it open "
                "pictures of this machine and of addresses that it reaches: there is no password.",
                err=True,
            )
        code, was_ready = run_server(command, lambda: offers(address, export.name), on_ready)
    if not was_ready:
        click.echo(f"Error: the server ended with exit code {code} before it answered.", err=True)
        code = code or 1
    raise SystemExit(code)


def read_export(model: str) -> ServedExport:
    """What is to be served. Raises ConfigError, with the remedy, for no export or half of one."""
    from prismcap.configs.errors import ConfigError
    from prismcap.model.hf.files import read_marker
    from prismcap.scripts.commands.caption import find_model
    from prismcap.scripts.serving.backends import ServedExport, served_name

    folder = Path(find_model(model))
    if not folder.is_dir():
        raise ConfigError(
            f"{model}: no such folder; a model of the hub is served by `transformers serve {model}` itself"
        )
    marker = read_marker(folder)
    if marker.get("weights") == "adapter":
        raise ConfigError(
            f"{folder}: its LoRA lies apart, and a server would leave it out: export again without --adapter"
        )
    return ServedExport(
        folder=folder,
        name=served_name(str(marker.get("name", folder.resolve().name))),
        format=str(marker.get("format", "custom")),
        prompt=str(marker.get("prompt", "")),
        stop=tuple(str(text) for text in marker.get("stop", ())),
    )


def check_free(address: Address, option: str) -> None:
    """Raises ConfigError when nothing can listen at the address: told before a model is loaded."""
    import socket

    from prismcap.configs.errors import ConfigError

    family = socket.AF_INET6 if ":" in address.host else socket.AF_INET
    with socket.socket(family) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((address.host, address.port))
        except OSError as error:
            raise ConfigError(
                f"{option} {address.port}: nothing can listen there on {address.host}: {error}; name another"
            ) from error


def check_apart(port: int, ui_port: int) -> None:
    """Raises ConfigError when server and page would be at one port."""
    from prismcap.configs.errors import ConfigError

    if port == ui_port:
        raise ConfigError(f"--ui-port {ui_port}: the server is there (--port); name another for the page")


def offers(address: Address, name: str) -> bool:
    """Whether the server answers and knows the model."""
    from prismcap.scripts.serving.client import ServerError, model_names

    try:
        return name in model_names(address)
    except (OSError, ServerError):
        return False


def curl_line(export: ServedExport, address: Address) -> str:
    """One line for a shell: a picture and the default prompt through the address."""
    from prismcap.scripts.serving.client import CHAT, chat_body

    here = "PICTURE"
    body = json.dumps(chat_body(export.name, f"data:image/jpeg;base64,{here}", export.prompt, 128))
    quoted = body.replace("'", r"'\''")
    # through a pipe: as an argument a photo would be too long
    picture = "'\"$(base64 < PICTURE.jpg | tr -d '\\n')\"'"
    text = quoted.replace(f"base64,{here}", f"base64,{picture}", 1)
    return f"printf %s '{text}' | curl {address.url}{CHAT} -H 'Content-Type: application/json' -d @-"
