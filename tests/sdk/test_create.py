from pathlib import Path

import pytest

from finetuneflow import Client, InvalidArgument
from finetuneflow.spec import draft_spec, spec_to_dict
from finetuneflow.v1 import fine_tuning_job_spec_pb2 as pb
from tests.fakes.gateway import FakeGateway


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    path = tmp_path / "train.jsonl"
    path.write_text('{"question": "q", "answer": "a"}\n' * 50_000)
    return path


def test_files_are_uploaded_and_named_by_their_ids(client: Client, gateway: FakeGateway, rows: Path) -> None:
    job = client.jobs.create(
        base_model="smollm2-135m",
        training_data=[rows, {"dataset": "ds_abc", "weight": 0.5, "mapping": {"question": "q"}}, "hf://org/rows@v1"],
        evaluation_data=str(rows),
        method="lora",
        hyperparameters={"num_epochs": 1, "max_seq_length": 128, "precision": "bf16", "learning_rate": None},
        lora={"r": 8, "target_modules": ["q_proj"]},
        labels={"team": "a"},
    )
    (request,) = gateway.requests("CreateFineTuningJob")
    (uploaded,) = gateway.uploads
    assert gateway.uploads[uploaded] == rows.read_bytes()
    assert [source.dataset for source in request.spec.training_data] == [uploaded, "ds_abc", "hf://org/rows@v1"]
    assert request.spec.evaluation_data[0].dataset == uploaded
    assert request.spec.method == pb.TRAINING_METHOD_LORA
    assert request.spec.hyperparameters.max_length == 128
    assert not request.spec.hyperparameters.HasField("learning_rate")
    assert request.request_id
    assert job.spec["hyperparameters"] == {"num_epochs": 1.0, "max_length": 128, "precision": "bf16"}
    assert job.spec["training_data"][1]["mapping"] == {"question": "q"}


def test_each_file_of_a_folder_is_a_source_in_the_order_of_paths(
    client: Client, gateway: FakeGateway, tmp_path: Path
) -> None:
    for name in ("b/2.txt", "a.txt.gz", "b/10.txt", ".hidden/x.txt", "b/.DS_Store"):
        path = tmp_path / "corpus" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(name)
    client.jobs.create(base_model="m", training_data=[{"dataset": tmp_path / "corpus", "weight": 2}, "ds_1"])
    (request,) = gateway.requests("CreateFineTuningJob")
    *sources, last = request.spec.training_data
    assert [gateway.uploads[source.dataset] for source in sources] == [b"a.txt.gz", b"b/10.txt", b"b/2.txt"]
    assert [source.weight for source in sources] == [2, 2, 2]
    assert last.dataset == "ds_1"


@pytest.mark.parametrize(
    ("names", "said"),
    [(["a.txt", "b/c.png"], "b/c.png"), (["a.txt", "other"], "other/ (a link)"), ([], "no files of rows")],
)
def test_folder_with_other_files_is_refused_before_any_upload(
    client: Client, gateway: FakeGateway, tmp_path: Path, names: list[str], said: str
) -> None:
    (tmp_path / "corpus" / "b").mkdir(parents=True)
    for name in names:
        path = tmp_path / "corpus" / name
        path.symlink_to(tmp_path) if name == "other" else path.write_text("text")
    with pytest.raises(InvalidArgument) as caught:
        client.jobs.create(base_model="m", training_data=str(tmp_path / "corpus"))
    assert said in dict(caught.value.violations)["spec.training_data[0].dataset"]
    assert not gateway.uploads


def test_returned_spec_can_be_sent_again(client: Client) -> None:
    spec = pb.FineTuningJobSpec(base_model="m", method=3, seed=7)
    spec.training_data.add(dataset="ds_1", weight=2)
    spec.quantization.bits = 4
    spec.export.formats.append(pb.EXPORT_FORMAT_GGUF)
    assert draft_spec(spec_to_dict(spec)).spec == spec
    assert client.jobs.create(spec=spec).proto.spec == spec  # type: ignore[attr-defined]


def test_all_violations_are_raised_at_once_before_any_upload(client: Client, gateway: FakeGateway, rows: Path) -> None:
    with pytest.raises(InvalidArgument) as caught:
        client.jobs.create(
            training_data=[rows, "s3://org/name", "missing.jsonl"],
            method="lorra",
            hyperparameters={"learnin_rate": 1, "r": 3, "num_epochs": "three", "max_length": 5, "max_seq_length": 5},
            lora={"r": 2.5, "target_modules": "q_proj"},
            seed=2**70,
        )
    said = dict(caught.value.violations)
    assert "did you mean `learning_rate`" in said["spec.hyperparameters.learnin_rate"]
    assert "`lora.r`" in said["spec.hyperparameters.r"]
    assert "number" in said["spec.hyperparameters.num_epochs"]
    assert "`max_length`" in said["spec.hyperparameters.max_seq_length"]
    assert "did you mean `lora`" in said["spec.method"]
    assert "whole number" in said["spec.lora.r"]
    assert "list" in said["spec.lora.target_modules"]
    assert "hf://" in said["spec.training_data[1].dataset"]
    assert "no such file" in said["spec.training_data[2].dataset"]
    assert {"spec.base_model", "spec.seed"} <= said.keys()
    assert gateway.calls == []


def test_empty_table_of_a_push_is_refused() -> None:
    """Read as unset, it trained for hours and pushed nothing."""
    with pytest.raises(InvalidArgument) as caught:
        draft_spec({"base_model": "m", "training_data": "ds_1", "export": {"hub": {}}})
    assert "name the repository" in dict(caught.value.violations)["spec.export.hub"]


def test_two_services_in_one_integration_are_refused() -> None:
    """The first one was dropped, and nobody learned that it received nothing."""
    both = {"webhook": {"url": "https://example.com/hook", "secret": "hook"}, "tensorboard": {}}
    with pytest.raises(InvalidArgument) as caught:
        draft_spec({"base_model": "m", "training_data": "ds_1", "integrations": [{"tensorboard": {}}, both]})
    said = dict(caught.value.violations)
    assert said == {"spec.integrations[1]": "has webhook and tensorboard, which cannot be combined; set one of them"}


def test_setting_of_a_table_without_settings_is_refused() -> None:
    with pytest.raises(InvalidArgument) as caught:
        draft_spec({"base_model": "m", "training_data": "ds_1", "integrations": [{"tensorboard": {"url": "x"}}]})
    assert dict(caught.value.violations)["spec.integrations[0].tensorboard.url"].endswith(
        "takes no settings, leave it empty"
    )


@pytest.mark.parametrize(
    ("given", "meant"),
    [
        ("model", "base_model"),
        ("name", "display_name"),
        ("dataset", "training_data"),
        ("holdout_percentage", "holdout_fraction"),
        ("lora.lora_rank", "r"),
        ("hyperparameters.lora_r", "lora.r"),
        ("hyperparameters.gradient_accumulation", "gradient_accumulation_steps"),
        ("hyperparameters.patience", "early_stopping_patience"),
        ("export.push", "hub"),
        ("evaluation.judge", "graders"),
    ],
)
def test_name_of_other_programs_leads_to_the_field_that_is_meant(given: str, meant: str) -> None:
    """A list of thirty fields makes people search, and a wrong suggestion sends them on."""
    section, _, name = given.rpartition(".")
    with pytest.raises(InvalidArgument) as caught:
        draft_spec({"base_model": "m", "training_data": "ds_1", **({section: {name: 1}} if section else {name: 1})})
    assert f"did you mean `{meant}`?" in dict(caught.value.violations)[f"spec.{given}"]


def test_create_with_lost_response_makes_one_job(client: Client, gateway: FakeGateway) -> None:
    gateway.outages = {"CreateFineTuningJob": 2}
    client.jobs.create(base_model="m", training_data="ds_1")
    requests = gateway.requests("CreateFineTuningJob")
    assert len(requests) == 3
    assert len({request.request_id for request in requests}) == 1


def test_dry_run_deletes_its_uploads(client: Client, gateway: FakeGateway, rows: Path) -> None:
    job = client.jobs.create(base_model="m", training_data=rows, validate_only=True)
    assert job.id == ""
    assert gateway.requests("CreateFineTuningJob")[0].validate_only
    assert gateway.deleted == list(gateway.uploads)


def test_preflight_deletes_its_uploads(client: Client, gateway: FakeGateway, rows: Path) -> None:
    """A refused job is a result with the whole report, not an exception with one sentence."""
    found = client.jobs.preflight(base_model="m", training_data=rows, hyperparameters={"num_epochs": 3}, node_id="n")
    assert not found.refused
    assert found.resolved_spec["training_data"] == [{"dataset": str(rows)}]
    assert found.resolved_spec["display_name"] == f"m on {rows.name}"
    assert (found.report.improvements[0].suggested, found.resolutions[0].value) == ("true", "lora")
    assert found.estimate.disk is not None
    assert gateway.requests("PreflightFineTuningJob")[0].node_id == "n"
    assert gateway.deleted == list(gateway.uploads)
    found = client.jobs.preflight(
        spec={"base_model": "m", "training_data": "ds_1", "hyperparameters": {"num_epochs": 100}}
    )
    assert found.refused
    assert found.report.findings[0].violations[0].field == "spec.hyperparameters.save_total_limit"
    with pytest.raises(InvalidArgument, match="bse_model"):
        client.jobs.preflight(bse_model="m", training_data=rows)


def test_same_file_twice_is_one_dataset(client: Client, gateway: FakeGateway, rows: Path) -> None:
    for _ in range(2):
        client.jobs.create(base_model="m", training_data=rows)
    assert len(gateway.uploads) == 1


def test_numbers_may_be_strings() -> None:
    spec = draft_spec(
        {"base_model": "m", "training_data": "ds_1", "seed": "7", "hyperparameters": {"packing": "true"}}
    ).spec
    assert spec.seed == 7
    assert spec.hyperparameters.packing is True


def test_all_linear_string_is_accepted_as_target_modules() -> None:
    """peft's value for what is the default here; needed to override a recipe's own list."""
    draft = draft_spec({"base_model": "m", "training_data": "ds_1", "lora": {"target_modules": "all-linear"}})
    assert list(draft.spec.lora.target_modules) == ["all-linear"]
    with pytest.raises(InvalidArgument):
        draft_spec({"base_model": "m", "training_data": "ds_1", "lora": {"target_modules": "q_proj"}})
