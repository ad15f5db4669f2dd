"""The base model of a query; its tokenizer is trained first if the model asks for one of the corpus."""

from engine.catalogue import LocalModel
from engine.config.job import JobConfig
from engine.data.corpus_tokenizer import TrainedTokenizer, train_tokenizer
from engine.data.split import Progress
from engine.plan.trained_tokenizer import with_trained_tokenizer
from engine.random_reference import RandomReference
from services.probe.queries.query import ProbeQuery


def model_of(query: ProbeQuery, config: JobConfig, progress: Progress) -> tuple[LocalModel, TrainedTokenizer | None]:
    """Returns the base model, whose folder has a tokenizer, and the tokenizer if it was trained on the query's rows.

    Raises what `train_tokenizer` raises.
    """
    model = query.provided.model.local()
    named = RandomReference.parse(model.id)
    if named is None or not named.needs_corpus:
        return model, None
    trained = train_tokenizer(config, query.files, query.out_dir / "tokenizer", progress, query.provided.limits)
    return with_trained_tokenizer(model, trained.file, query.out_dir / "model"), trained
