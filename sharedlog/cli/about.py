"""`sharedlog version` and `sharedlog completion`."""

from __future__ import annotations

import click

from sharedlog.cli.app import ExamplesCommand, Settings, output_options, pass_settings


@click.command(cls=ExamplesCommand, examples="sharedlog version --json")
@output_options
@pass_settings
def version(settings: Settings) -> None:
    """Print the version of this command and of what it runs on."""
    import platform

    from sharedlog import __version__
    from sharedlog.cli.output import print_json

    found = {
        "sharedlog": __version__,
        "python": platform.python_version(),
        "grpcio": _installed("grpcio"),
        "protobuf": _installed("protobuf"),
    }
    if settings.json:
        print_json(found)
        return
    rest = ", ".join(f"{name} {number}" for name, number in found.items() if name != "sharedlog")
    click.echo(f"sharedlog {found['sharedlog']} ({rest})")


def _installed(package: str) -> str | None:
    from importlib.metadata import PackageNotFoundError
    from importlib.metadata import version as version_of

    try:
        return version_of(package)
    except PackageNotFoundError:  # run from a checkout that was not installed
        return None


@click.command(
    cls=ExamplesCommand,
    examples="""
eval "$(sharedlog completion bash)"             in ~/.bashrc
eval "$(sharedlog completion zsh)"              in ~/.zshrc
sharedlog completion fish > ~/.config/fish/completions/sharedlog.fish
""",
)
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
def completion(shell: str) -> None:
    """Print the script that makes a shell complete this command's words."""
    from click.shell_completion import get_completion_class

    from sharedlog.cli.root import cli

    found = get_completion_class(shell)
    assert found is not None
    click.echo(found(cli, {}, "sharedlog", "_SHAREDLOG_COMPLETE").source())
