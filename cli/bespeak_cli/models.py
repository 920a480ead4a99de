"""`bespeak models`: list, verify, build and export models; `training.py` has the commands that train them."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from bespeak_cli import training

if TYPE_CHECKING:
    from bespeak.models.catalogue import ModelRecord
    from bespeak.models.export import Precision


@click.group()
def models() -> None:
    """List, verify, build, export and train models."""


@models.command("list")
@click.option("--format", type=click.Choice(["text", "json"]), default="text", show_default=True)
@click.pass_context
def list_(ctx: click.Context, format: str) -> None:
    """List the shipped models and those made on this machine.

    An asterisk marks the models that commands use unless you name another.
    """
    from bespeak.models.catalogue import known_models

    found = list(known_models(ctx.obj.cache))
    if format == "json":
        click.echo(as_json(found))
        return
    for record, folder in found:
        click.echo(as_line(record, folder, ctx.obj.cache))
    if not any(record.kind == "rewriter" for record, _ in found):
        click.echo("The rewriter is not built yet: run 'bespeak models build'.", err=True)


def as_line(record: ModelRecord, folder: Path, cache: Path) -> str:
    megabytes = sum(file.bytes for file in record.files.values()) / 1e6
    mark = "*" if record.default else " "
    adapter = f", {adapter_in_use(record, cache)}" if record.kind == "rewriter" else ""
    return f"{mark} {record.name}  {record.kind}{adapter}  {megabytes:.0f} MB  {record.licence}  {folder}"


def adapter_in_use(record: ModelRecord, cache: Path) -> str:
    """Which adapter a built rewriter was made with."""
    from bespeak.rewriting.model import made_from

    if record.made == made_from(None):
        return "shipped adapter"
    return "own adapter" if record.made == made_from(cache) else "of older parts"


def as_json(found: list[tuple[ModelRecord, Path]]) -> str:
    import json
    from dataclasses import asdict

    rows = [asdict(record) | {"version": record.version, "folder": str(folder)} for record, folder in found]
    return json.dumps(rows, indent=2)


@models.command()
@click.argument("name", required=False)
@click.pass_context
def verify(ctx: click.Context, name: str | None) -> None:
    """Check the size and sha256 of every file of the model NAME, or of all models."""
    from bespeak.errors import ModelError
    from bespeak.models.catalogue import known_models, model_folder
    from bespeak.models.catalogue import verify as verify_model

    cache = ctx.obj.cache
    folders = [model_folder(name, cache)] if name else [folder for _, folder in known_models(cache)]
    broken = []
    for folder in folders:
        try:
            record = verify_model(folder)
            click.echo(f"{record.name}: {len(record.files)} files are intact")
        except ModelError as error:
            broken.append(folder.name)
            click.echo(f"{folder.name}: {error}", err=True)
    if broken:
        raise ModelError(f"{len(broken)} of {len(folders)} models are damaged: {', '.join(broken)}")


@models.command()
@click.argument("name_or_folder")
@click.option(
    "--to", type=click.Path(file_okay=False, path_type=Path), show_default="in --cache-dir", help="Folder to write."
)
@click.option(
    "--precision",
    type=click.Choice(["int8", "fp32"]),
    default="int8",
    show_default=True,
    help="int8 takes a quarter of the space; fp32 keeps the weights as they are.",
)
@click.pass_context
def export(ctx: click.Context, name_or_folder: str, to: Path | None, precision: Precision) -> None:
    """Convert a sentence-transformers model to an encoder for --encoder.

    NAME_OR_FOLDER is the model's folder, or its name on the Hugging Face hub. Needs the extra 'train'.
    """
    from bespeak.models.export import default_name, export_model

    folder = to or ctx.obj.cache / "models" / default_name(name_or_folder)
    click.echo(f"Exporting {name_or_folder} to {folder} …", err=True)
    record = export_model(name_or_folder, folder, precision)
    click.echo(f"{record.name}: {record.made}", err=True)
    click.echo(str(to) if to else record.name)


@models.command()
@training.adapter_option
@click.pass_context
def build(ctx: click.Context, adapter: Path | None) -> None:
    """Build the rewriter's language model in the cache folder. Needs the extra 'rewriter'.

    All commands use it, with this adapter, until you build it with another.
    """
    from bespeak.rewriting.build import use_adapter
    from bespeak_cli.parts import build_with_progress

    use_adapter(ctx.obj.cache, adapter)
    click.echo(str(build_with_progress(ctx.obj.cache)))


for command in (training.train, training.train_gain, training.train_context, training.train_reader):
    models.add_command(command)
