"""Training rows: packed into sequences where configured, and the names under which their owner knows them."""

from collections.abc import Iterable

import numpy
import pyarrow
from datasets import Dataset, concatenate_datasets
from trl.data_utils import pack_dataset

from engine.data.prepare import Prepared
from engine.data.row_numbers import row_names as names_of
from engine.data.shards import read_shards
from services.trainer.worker.child_input import TrainingInput
from services.trainer.worker.order import lengths


def packed(child_input: TrainingInput, rows: Dataset) -> list[Dataset]:
    """Returns the rows of each phase, or of the job if it has none; packed if configured."""
    hyper, parts = child_input.config.hyperparameters, [rows]
    if child_input.config.phases:
        counts = [phase.train.num_examples for phase in Prepared.read(child_input.data_dir).phases]
        parts = [rows.select(range(sum(counts[:i]), sum(counts[: i + 1]))) for i in range(len(counts))]
    if hyper.packing:
        parts = [pack_dataset(part, hyper.max_length, "bfd", {"keep_in_memory": True}) for part in parts]
    return parts


def row_names(child_input: TrainingInput, indices: Iterable[int]) -> list[str]:
    """Returns the names of rows by their index in the training, where packed sequences stand for their rows."""
    config = child_input.config
    if config.hyperparameters.packing:
        counted = numpy.array(lengths(read_shards(child_input.data_dir / "train")))
        offsets = numpy.concatenate([[0], numpy.cumsum(counted)])
        tokens = pyarrow.array(numpy.repeat(numpy.arange(len(counted)), counted))
        # Packs the numbers of the rows as their tokens were.
        numbers = pyarrow.table({"row": pyarrow.LargeListArray.from_arrays(pyarrow.array(offsets), tokens)})
        sequences = concatenate_datasets(packed(child_input, Dataset(numbers)))
        indices = dict.fromkeys(row for index in indices for row in sequences[index]["row"])
    return names_of(child_input.data_dir, config, indices)
