"""Packages made from tuned models and base models."""

from __future__ import annotations

import builtins
import uuid
from collections.abc import Mapping, Sequence
from os import PathLike
from pathlib import Path
from typing import Any, ClassVar

from finetuneflow.artifacts import AsyncArtifacts
from finetuneflow.blocking import blocking
from finetuneflow.enums import enum_number
from finetuneflow.errors import FailedPrecondition, InvalidArgument, Violation
from finetuneflow.fields import check_list
from finetuneflow.model_work import AsyncModelWork, BlockingModelWork, model_name
from finetuneflow.packages import FileProgress, download_package
from finetuneflow.resources.export import Export
from finetuneflow.resources.stage_result import ExportFormat
from finetuneflow.spec import push_settings
from finetuneflow.transport import CallPolicy
from finetuneflow.v1 import export_service_pb2 as pb
from finetuneflow.v1 import export_service_pb2_grpc as pb_grpc
from finetuneflow.v1 import fine_tuning_job_spec_pb2 as spec_pb


class AsyncExports(AsyncModelWork[Export]):
    """`client.exports` of an AsyncClient."""

    _noun: ClassVar[str] = "Export"
    _api: ClassVar[Any] = pb
    _resource: ClassVar[type[Export]] = Export

    def __init__(self, transport: CallPolicy, artifacts: AsyncArtifacts) -> None:
        super().__init__(transport, pb_grpc.ExportServiceStub(transport.channel))
        self._artifacts = artifacts

    async def create(
        self,
        model: str,
        *,
        formats: Sequence[ExportFormat | str] = (),
        dtype: str | None = None,
        merge_base: str | None = None,
        gguf_types: Sequence[str] = (),
        hub: Mapping[str, Any] | None = None,
        secrets: Mapping[str, str] | None = None,
        request_id: str = "",
    ) -> Export:
        """Packs the model of a job whose training has finished, or a base model.

        Args:
            model: The tuned model, `ft:<job_id>` (`job.tuned_model`), or the id of its job; or `ft:<job_id>@<step>`, a
                checkpoint that the job still has; or a base model.
            formats: Formats of the package, several at once: `adapter`, `merged`, `gguf`, `gguf_adapter`. Default:
                the job's own. Required for a base model, which has no adapter: `merged`, `gguf`, or both.
            dtype: Number format of the weights of `merged`: `float32`, `bfloat16` or `float16`; empty: that of the base
                model's weights. Default: the job's own; for a base model that of each of its weights.
            merge_base: Base weights that the adapter of method QLORA is merged into: `trained`, the quantized ones that
                it was trained on, dequantized; or `original`, those of the base model's files. Default: the job's own.
            gguf_types: Types of the files of `gguf` and `gguf_adapter`, several at once: `f32`, `f16`, `bf16`, `q8_0`,
                and for `gguf` those that an exporter with llama.cpp's library makes, such as `q4_k_m`. Default: the
                job's own, or else `q8_0`, and `f16` for `gguf_adapter`.
            hub: Repository of the hub that the files of the package are pushed to: a table of `repo_id`
                (`namespace/name`), `private` (default True), `revision` (the branch, default `main`) and
                `commit_message`. Default: it is not pushed, whatever the job did with its own package.
            secrets: Secrets that the export uses: use → name of the secret, never its value. The only use is
                `hub_write_token`, the token for `hub`. Default: the job's own.
            request_id: Makes the call idempotent: a repeated call with the same request_id and arguments returns the
                same export. At most 128 characters. Default: a new one, so retries of this call are safe.

        Returns:
            The export, in state QUEUED.

        Raises:
            NotFound: There is no such model, checkpoint or secret.
            FailedPrecondition: The job has not finished its training, or another version resolved its settings.
            InvalidArgument: A value is unknown, a setting of a form is set without that form, no running exporter can
                make these GGUF types, hub has no repository or no secret; or for a base model formats is empty or has
                an adapter, or merge_base or hub is set.
            AlreadyExists: The request_id was used with other arguments.
        """
        check_list("formats", formats)
        check_list("gguf_types", gguf_types)
        numbers = [enum_number(spec_pb.ExportFormat.DESCRIPTOR, each, "formats") for each in formats]
        spec = spec_pb.ExportSpec(formats=numbers, dtype=dtype, merge_base=merge_base, gguf_types=gguf_types)
        if hub is not None:
            spec.hub.CopyFrom(push_settings(hub))
        request = pb.CreateExportRequest(
            model=model_name(model), spec=spec, request_id=request_id or uuid.uuid4().hex, secrets=secrets
        )
        return self._read(await self._transport.call(self._stub.CreateExport, request))

    async def download(
        self,
        export_id: str,
        to: str | PathLike[str] = ".",
        *,
        forms: Sequence[ExportFormat | str] = (),
        progress: FileProgress | None = None,
    ) -> builtins.list[Path]:
        """Downloads the files of an export. Files are verified and resumed as in `jobs.download`.

        Args:
            export_id: Id of the export.
            to: Folder for the files; created if it does not exist. Default: the current folder.
            forms: Downloads only the files in the folders of these forms: `merged`, `gguf`, `gguf_adapter`, or
                `adapter` for the top folder, without the zip. Default: every file, and the zip.
            progress: Called with the file's name, the bytes received so far and the size of the file, in bytes.

        Returns:
            Paths of the files.

        Raises:
            NotFound: The export does not exist.
            InvalidArgument: The package has no such form.
            FailedPrecondition: The export has no package (yet). One whose push to the hub has failed has one.
            IntegrityError: The bytes do not have the size or SHA-256 that the server announced.
            OSError: A file cannot be written.
        """
        export = await self.get(export_id)
        # The zip is stored last. With it the package is complete, also if its push to the hub has failed.
        whole = self._artifacts.list(export_id, kind="export_package", limit=1)
        if export.result is None and not [each async for each in whole]:
            raise FailedPrecondition(f"Export {export_id} has no package: it is {export.state}.", reason="NO_EXPORT")
        check_list("forms", forms)
        folders = None
        if forms:
            found = {form.format: form.path for form in export.result.forms} if export.result else {}
            wanted = [ExportFormat(str(form).upper()) for form in forms]
            for form in wanted:
                if form not in found:
                    has = ", ".join(each.lower() for each in found)
                    message = f"Export {export_id} has no form {form.lower()}; it has {has}."
                    raise InvalidArgument(message, reason="UNKNOWN_VALUE", violations=[Violation("forms", message)])
            folders = {found[form] for form in wanted}
        return await download_package(self._artifacts, export_id, Path(to), progress, folders)


class Exports(BlockingModelWork):
    """`client.exports`."""

    create = blocking(AsyncExports.create)
    download = blocking(AsyncExports.download)
