"""`ftf datasets`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from finetuneflow.cli.advice import ftf
from finetuneflow.cli.dataset_inspection import preview, stats
from finetuneflow.cli.session import Json, not_empty, print_deleted, print_json, print_newest, print_rows, session, size
from finetuneflow.errors import FineTuneFlowError
from finetuneflow.fields import INT32_MAX
from finetuneflow.files import files_of_folder
from finetuneflow.resources.dataset import Dataset


def make_app() -> typer.Typer:
    """Returns the command group `datasets`."""
    app = typer.Typer(no_args_is_help=True, help="Upload, list, inspect and delete datasets.")
    app.command()(upload)
    app.command()(upload_adapter)
    app.command("list")(list_datasets)
    app.command()(get)
    app.command()(delete)
    app.command()(stats)
    app.command()(preview)
    return app


DatasetId = Annotated[str, typer.Argument(metavar="DATASET", help="Id of the dataset.", callback=not_empty)]

_HEADERS = ["ID", "NAME", "FILE", "SIZE", "CREATED"]


def upload(
    ctx: typer.Context,
    files: Annotated[list[Path], typer.Argument(exists=True, help="Files to upload, or folders of files.")],
    name: Annotated[str, typer.Option(help="Display name. Default: the file's name.")] = "",
    json: Json = False,
) -> None:
    """Upload files and print the id of each dataset."""
    here = session(ctx)
    listed = [one for each in files for one in _files_of(each)]
    for number, (shown, file) in enumerate(listed, start=1):
        try:
            dataset = here.client.datasets.upload(file, display_name=name or shown[-128:])
        except FineTuneFlowError as error:
            if unsent := ", ".join(str(path) for _, path in listed[number:]):
                error.advice = f"{error.advice}\nNot uploaded: {unsent}.".strip()
            raise
        if json:
            print_json(dataset.proto)
        else:
            here.console.print(f"{dataset.id}  {shown or dataset.filename}  {size(dataset.size_bytes)}")


def _files_of(path: Path) -> list[tuple[str, Path]]:
    """Returns display name and path of a file, or of each file of a folder."""
    if not path.is_dir():
        return [("", path)]
    found, others = files_of_folder(path)
    if others or not found:
        problem = (
            f"has files that are no rows, such as {others[0]}; name the files" if others else "has no files of rows"
        )
        raise typer.BadParameter(f"{path} {problem}.", param_hint="FILES")
    return [(f"{path.resolve().name}/{relative}", file) for relative, file in found]


def upload_adapter(
    ctx: typer.Context,
    folder: Annotated[
        Path,
        typer.Argument(exists=True, file_okay=False, help="Folder with adapter_config.json and its safetensors."),
    ],
    name: Annotated[str, typer.Option(help="Display name. Default: the folder's name.")] = "",
    json: Json = False,
) -> None:
    """Upload a LoRA adapter that was made elsewhere, and print its id."""
    here = session(ctx)
    dataset = here.client.datasets.upload_adapter(folder, display_name=name)
    if json:
        print_json(dataset.proto)
    else:
        here.console.print(f"{dataset.id}  {dataset.filename}  {size(dataset.size_bytes)}")
        here.console.print(f"Train it further: {ftf(f'train DATA --model BASE --set start_from={dataset.id}')}")


def list_datasets(
    ctx: typer.Context,
    limit: Annotated[int, typer.Option(min=1, max=INT32_MAX, help="Maximum number to list, newest first.")] = 20,
    json: Json = False,
) -> None:
    """List the newest datasets."""
    here = session(ctx)
    if json:
        print_json(*(dataset.proto for dataset in here.client.datasets.list(limit=limit)))
    else:
        print_newest(here.console, _HEADERS, lambda most: here.client.datasets.list(limit=most), _row, limit)


def get(ctx: typer.Context, dataset_id: DatasetId, json: Json = False) -> None:
    """Show one dataset."""
    here = session(ctx)
    dataset = here.client.datasets.get(dataset_id)
    if json:
        print_json(dataset.proto)
    else:
        print_rows(here.console, [*_HEADERS, "SHA-256"], [[*_row(dataset), dataset.sha256]])


def delete(ctx: typer.Context, dataset_id: DatasetId, json: Json = False) -> None:
    """Delete a dataset permanently."""
    here = session(ctx)
    here.client.datasets.delete(dataset_id)
    print_deleted(here.console, dataset_id, as_json=json)


def _row(dataset: Dataset) -> list[str]:
    created = f"{dataset.create_time.astimezone():%Y-%m-%d %H:%M}" if dataset.create_time else ""
    return [dataset.id, dataset.display_name, dataset.filename, size(dataset.size_bytes), created]
