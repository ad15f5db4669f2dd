"""`ftf verify`."""

from __future__ import annotations

import json as json_module
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from finetuneflow.cli.exits import JOB_FAILED, CommandFailed
from finetuneflow.cli.session import Json, count, session, size
from finetuneflow.package_check import PackageCheck, Signature, check_package, kind_of
from finetuneflow.package_signature import SIGNATURE, read_keys


def verify(
    ctx: typer.Context,
    package: Annotated[
        Path,
        typer.Argument(help="The zip of a package, or the folder it was downloaded or unpacked into.", exists=True),
    ],
    key: Annotated[
        list[Path] | None,
        typer.Option(
            help="PEM file with the operator's public key. Repeatable. Default: the signature is not checked.",
            exists=True,
            dir_okay=False,
        ),
    ] = None,
    json: Json = False,
) -> None:
    """Check a package without a server: every file against its manifest and, with --key, who made it."""
    try:
        keys = read_keys(key) if key else None
    except ImportError as error:
        problem = "Signatures are checked with the package cryptography, which is not installed."
        raise CommandFailed(problem, advice='Install it: pip install "finetuneflow[cli]"') from error
    except ValueError as error:
        raise typer.BadParameter(str(error), param_hint="--key") from error
    found = check_package(package, keys)
    if json:
        typer.echo(json_module.dumps({**asdict(found), "passed": found.passed}))
    else:
        console = session(ctx).console
        for each in found.differences:
            console.print(f"{each.fault.replace('_', ' '):<12}{each.path}: {each.message}", style="red")
        if found.manifest_sha256:
            good = f"{count(found.num_files, 'file')}, {size(found.size_bytes)}, as {package}'s manifest says."
            named = f" {kind_of(found.job_id).capitalize()} {found.job_id}."
            console.print(good + named if found.job_id else good)
            console.print(_signature(found), style=None if found.passed else "red")
        if found.passed:
            console.print("The package is what its manifest says.")
        elif found.manifest_sha256:
            console.print("The package is NOT what was exported: do not use it.", style="bold red")
        else:
            console.print(
                "This is no whole package: only its zip, or the folder of all its files, can be verified.", style="red"
            )
    if not found.passed:
        raise typer.Exit(JOB_FAILED)


def _signature(found: PackageCheck) -> str:
    match found.signature:
        case Signature.VALID:
            return f"Signed by the key {found.operator_key}, which was given."
        case Signature.INVALID:
            return f"Not authentic: {found.signature_message}."
        case Signature.NONE:
            return f"Not authentic: the package has no {SIGNATURE}, so no key has signed it."
        case _:
            named = f"; it names the key {found.operator_key}" if found.operator_key else "; it is not signed"
            return f"Who made it was not checked, only its hashes{named}. Give the operator's public key with --key."
