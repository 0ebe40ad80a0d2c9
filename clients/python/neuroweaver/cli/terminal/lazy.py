"""Commands that are imported when they are asked for, so that `--help` and a typing error wait for none."""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from typing import Any, Final

import typer
from typer.core import TyperCommand, TyperGroup
from typer.main import get_command, get_group

from neuroweaver.cli.terminal.failures import EPILOG

MARKUP: Final = "markdown"


class LazyGroup(TyperGroup):
    """panels: by its heading in the help, the modules below neuroweaver.cli and the commands in each.

    A command is the function of its name, with an underscore where Python needs one; a group is the module's
    `app`. The names may come with a line of help each, which is then shown without an import.
    """

    def __init__(
        self, *, panels: Mapping[str, Mapping[str, str | Mapping[str, str]]], **settings: Any
    ) -> None:
        super().__init__(**{"epilog": EPILOG, "rich_markup_mode": MARKUP, **settings})
        self._modules: dict[str, str] = {}
        for panel, modules in panels.items():
            for module, names in modules.items():
                helps = dict.fromkeys(names.split(), "") if isinstance(names, str) else names
                for name, line in helps.items():
                    self._modules[name] = module
                    self.commands[name] = TyperCommand(name, help=line, rich_help_panel=panel)

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        """For a line of help or a completion."""
        command = super().get_command(ctx, cmd_name)
        return self._imported(cmd_name) if command and not command.help else command

    def resolve_command(self, ctx: Any, args: list[str]) -> tuple[str | None, Any, list[str]]:
        """For running it."""
        name, command, rest = super().resolve_command(ctx, args)
        return name, self._imported(name) if name else command, rest

    def _imported(self, name: str) -> Any:
        if module := self._modules.pop(name, ""):
            stub: Any = self.commands[name]
            command = _command(name, import_module(f"neuroweaver.cli.{module}"))
            command.name, command.rich_help_panel = name, stub.rich_help_panel
            command.help = stub.help if isinstance(command, TyperGroup) and stub.help else command.help
            self.commands[name] = command
        return self.commands[name]


def _command(name: str, module: Any) -> Any:
    function = getattr(module, name, None) or getattr(module, f"{name}_", None)
    if function is None:
        return get_group(module.app) if isinstance(module.app, typer.Typer) else module.app
    app = typer.Typer(add_completion=False, rich_markup_mode=MARKUP)
    app.command(epilog=EPILOG)(function)
    return get_command(app)
