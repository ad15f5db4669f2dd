"""Counts the rows and tokens of a job's data, for an estimate of its duration and cost."""

from engine.config.job import job_config
from engine.config.spec_proto import spec_to_dict
from engine.data.prepare import prepare
from engine.data.split import Progress
from engine.plan.findings import data_statistics
from finetuneflow.v1.probe_service_pb2 import EstimateResourcesRequest
from finetuneflow.v1.validation_pb2 import ValidationReport
from services.probe.queries.corpus_model import model_of
from services.probe.queries.query import ProbeQuery


def count_tokens(query: ProbeQuery, progress: Progress) -> ValidationReport:
    """Returns the statistics of training and held-out rows, truncated to max_length as in the training.

    Raises JobError for rows that would refuse a job.
    """
    config = job_config(spec_to_dict(query.parsed(EstimateResourcesRequest()).spec))
    model, _ = model_of(query, config, progress)
    shards = query.out_dir / "shards"
    counted = prepare(config, model.path, query.files, shards, progress, limits=query.provided.limits)
    return ValidationReport(
        training_data=data_statistics(counted.train),
        evaluation_data=data_statistics(counted.eval),
    )
