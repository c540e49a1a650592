"""Groups of commands that name the nearest command to a mistyped one."""

from __future__ import annotations

import click

from prismcap.configs.errors import nearest


class NamingGroup(click.Group):
    """A wrong command is answered with the nearest one there is."""

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        known = self.list_commands(ctx)
        if args and args[0] not in known and not args[0].startswith("-"):
            raise click.UsageError(f"no command {args[0]!r}.{nearest(args[0], known)}", ctx)
        return super().resolve_command(ctx, args)
