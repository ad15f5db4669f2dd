"""Graders of answers, in the fields of OpenAI's grader objects.

Types that would run a caller's code (`python`) or need another service (`endpoint`) are refused. Within texts,
`{{item.<column>}}` stands for a value of the row, `{{sample.output_text}}` for the answer, and
`{{sample.output_json.<key>}}` for a value of an answer that is JSON.
"""

import ast
import re
from collections.abc import Iterator, Mapping
from typing import Annotated, Any, Final, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, TypeAdapter, ValidationError

MAX_GRADERS: Final = 16
BASE: Final = "base"
"""As a judge: the base model of the evaluation."""
_PLACEHOLDER: Final = re.compile(r"\{\{\s*(.*?)\s*\}\}")
_PATH: Final = re.compile(r"(?:item\.[^.{}]+(?:\.[^.{}]+)*|sample\.output_text|sample\.output_json(?:\.[^.{}]+)+)")
FIRST: Final = "first.output_text"
SECOND: Final = "second.output_text"
_TEXT_PARTS: Final = ("input_text", "output_text", "text")
_MAX_TEXT: Final = 16 * 1024
FUNCTIONS: Final = ("abs", "ceil", "exp", "floor", "log", "max", "min", "sqrt")
"""Functions that `calculate_output` can call."""
_UNAVAILABLE: Final = {
    "python": "runs code, which is not done here; use string_check, text_similarity, label_model, score_model or multi",
    "endpoint": "calls a service of your own, which is not done here; use score_model with a model of the catalogue",
}


def placeholders(text: str) -> Iterator[str]:
    """Yields the paths of the placeholders in a text."""
    return (found[1] for found in _PLACEHOLDER.finditer(text))


def filled(text: str, values: Mapping[str, str]) -> str:
    """Returns a text with its placeholders replaced; `values` are by path."""
    return _PLACEHOLDER.sub(lambda found: values[found[1]], text)


def _valid_text(text: str) -> str:
    if len(text) > _MAX_TEXT:
        raise ValueError(f"it has {len(text):,} characters; at most {_MAX_TEXT:,} are allowed")
    for path in placeholders(text):
        if not _PATH.fullmatch(path) and path not in (FIRST, SECOND):
            raise ValueError(
                f"{{{{{path}}}}} is unknown; use item.<column>, sample.output_text or sample.output_json.<key>"
            )
    return text


_Text = Annotated[str, AfterValidator(_valid_text)]


class _Grader(BaseModel):
    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)

    name: str = Field(default="", max_length=64, pattern=r"^[A-Za-z0-9_. -]*$")


class StringCheck(_Grader):
    """1 if the comparison holds, otherwise 0."""

    type: Literal["string_check"]
    input: _Text
    reference: _Text
    operation: Literal["eq", "ne", "like", "ilike"]
    """`like`: the input contains the reference; `ilike`: whatever the case of its letters."""


class TextSimilarity(_Grader):
    """The similarity of two texts, from 0 to 1."""

    type: Literal["text_similarity"]
    input: _Text
    reference: _Text
    evaluation_metric: Literal[
        "fuzzy_match", "bleu", "gleu", "rouge_1", "rouge_2", "rouge_3", "rouge_4", "rouge_5", "rouge_l"
    ]
    pass_threshold: float | None = Field(default=None, ge=0, le=1)
    """The grade is 1 from this similarity on, otherwise 0. None: the grade is the similarity."""


def _plain_content(content: Any) -> Any:
    """Returns the text of a turn that is given as one or several parts."""
    parts = content if isinstance(content, list) else [content]
    if all(isinstance(part, dict) for part in parts):
        for part in parts:
            if part.get("type") not in _TEXT_PARTS or not isinstance(part.get("text"), str):
                raise ValueError(f"a part of type {part.get('type')!r} is no text; judges read text only")
        return "".join(part["text"] for part in parts)
    return content


class Message(BaseModel):
    """A turn that a judge reads."""

    model_config = ConfigDict(extra="forbid")

    role: Literal["system", "developer", "user", "assistant"]
    content: Annotated[str, BeforeValidator(_plain_content), AfterValidator(_valid_text)]
    """A text, or the parts that OpenAI's API has for it, of type input_text."""
    type: Literal["message"] = "message"


class SamplingParameters(BaseModel):
    """Sampling settings of a judge."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)

    max_completions_tokens: int = Field(default=256, ge=1, le=4096)
    seed: int | None = None
    temperature: float | None = Field(default=None, ge=0, le=2)
    """Judges answer greedily, so that a grade can be repeated; another value is named in the findings."""
    top_p: float | None = Field(default=None, gt=0, le=1)
    reasoning_effort: str | None = None


class _Judged(_Grader):
    model: str = Field(min_length=1, max_length=512)
    """Id of a base model, `ft:<job_id>`, or `base`: the base model of the evaluation."""
    input: list[Message] = Field(min_length=1, max_length=16)
    sampling_params: SamplingParameters = SamplingParameters()


class ScoreModel(_Judged):
    """A number that a judge gives, scaled to [0, 1]."""

    type: Literal["score_model"]
    range: tuple[float, float] = (0.0, 1.0)
    pass_threshold: float | None = None
    """In the unit of the range: the grade is 1 from this score on, otherwise 0. None: the grade is the score."""


class LabelModel(_Judged):
    """1 if the label that a judge chooses is a passing one, otherwise 0."""

    type: Literal["label_model"]
    labels: list[str] = Field(min_length=2, max_length=32)
    passing_labels: list[str] = Field(min_length=1, max_length=32)


class CompareModel(_Judged):
    """The better of the two models' answers, as a judge says. Not a type of OpenAI's.

    The judge does not know whose they are, and sees them in both orders; where its choices disagree, the row is a tie.
    """

    type: Literal["compare_model"]


class Multi(_Grader):
    """A formula of the grades of other graders."""

    type: Literal["multi"]
    graders: dict[
        Annotated[str, Field(pattern=r"^[A-Za-z_][A-Za-z0-9_]{0,62}$")],
        "StringCheck | TextSimilarity | ScoreModel | LabelModel",
    ] = Field(min_length=1, max_length=MAX_GRADERS)
    calculate_output: str = Field(min_length=1, max_length=1024)
    """Arithmetic on the names of `graders`, such as `0.5 * format + 0.5 * content`; limited to [0, 1]."""


Single = StringCheck | TextSimilarity | ScoreModel | LabelModel
Grader = Single | CompareModel | Multi
_KNOWN: Final[dict[str, Any]] = {
    "string_check": StringCheck,
    "text_similarity": TextSimilarity,
    "score_model": ScoreModel,
    "label_model": LabelModel,
    "compare_model": CompareModel,
    "multi": Multi,
}


def grader(value: Mapping[str, Any], *, needs_name: bool = True) -> Grader:
    """Reads a grader object. Raises ValueError with the problem, its field named."""
    kind = value.get("type")
    if kind in _UNAVAILABLE:
        raise ValueError(f"type {kind} {_UNAVAILABLE[kind]}")
    if kind not in _KNOWN:
        raise ValueError(f"type is {kind!r}; it must be one of {', '.join(_KNOWN)}")
    if kind == "multi":
        # Read one by one, so that an error names the type it is about.
        for name, inner in _table(value.get("graders")).items():
            if (inner_kind := _table(inner).get("type")) in ("multi", "compare_model"):
                raise ValueError(f"graders.{name}: a multi grader cannot contain one of type {inner_kind}")
            try:
                grader(_table(inner), needs_name=False)
            except ValueError as error:
                raise ValueError(f"graders.{name}: {error}") from None
    if needs_name and not value.get("name"):
        raise ValueError("name is missing; the metric is called grader:<name>")
    try:
        read: Grader = TypeAdapter(_KNOWN[str(kind)]).validate_python(dict(value))
    except ValidationError as error:
        detail = error.errors()[0]
        path = ".".join(str(part) for part in detail["loc"])
        said = detail["msg"].removeprefix("Value error, ")
        raise ValueError(f"{path}: {said[0].lower()}{said[1:]}") from None
    match read:
        case StringCheck() | TextSimilarity() | ScoreModel() | LabelModel() if {FIRST, SECOND} & set(_paths(read)):
            raise ValueError(f"{FIRST} and {SECOND} are for type compare_model; use sample.output_text")
        case LabelModel() if unknown := [label for label in read.passing_labels if label not in read.labels]:
            raise ValueError(f"passing_labels: {unknown[0]!r} is not one of labels")
        case ScoreModel() if read.range[0] >= read.range[1]:
            raise ValueError("range: the first number must be below the second")
        case CompareModel():
            named = {path for turn in read.input for path in placeholders(turn.content)}
            if not {FIRST, SECOND} <= named:
                raise ValueError(f"input: it must contain {{{{{FIRST}}}}} and {{{{{SECOND}}}}}")
        case Multi():
            checked_formula(read.calculate_output, read.graders)
    return read


def _paths(read: Single | CompareModel) -> Iterator[str]:
    if isinstance(read, StringCheck | TextSimilarity):
        texts = [read.input, read.reference]
    else:
        texts = [turn.content for turn in read.input]
    return (path for text in texts for path in placeholders(text))


def item_paths(read: Grader) -> list[str]:
    """Returns the values of a row that a grader needs, as `item.<column>`."""
    inner = read.graders.values() if isinstance(read, Multi) else [read]
    return [path for each in inner for path in _paths(each) if path.startswith("item.")]


def value_at(path: str, item: Any) -> Any:
    """Returns the value at `item.<column>`, `.<key>` or `.<index>` further down; None if there is none."""
    value = item
    for key in path.split(".")[1:]:
        if isinstance(value, Mapping) and key in value:
            value = value[key]
        elif isinstance(value, list) and key.isdecimal() and int(key) < len(value):
            value = value[int(key)]
        else:
            return None
    return value


def checked_grader(value: dict[str, Any]) -> dict[str, Any]:
    """Returns a grader object unchanged. Raises ValueError for one that cannot be read."""
    grader(value)
    return value


def judges(read: Grader) -> list[ScoreModel | LabelModel | CompareModel]:
    """Returns the graders of `read` that ask a model."""
    inner = list(read.graders.values()) if isinstance(read, Multi) else [read]
    return [each for each in inner if isinstance(each, ScoreModel | LabelModel | CompareModel)]


def checked_formula(formula: str, names: Mapping[str, Any]) -> ast.Expression:
    """Returns the parsed arithmetic of `calculate_output`. Raises ValueError."""
    try:
        tree = ast.parse(formula.replace("^", "**"), mode="eval")
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        raise ValueError(f"calculate_output: {formula!r} is no arithmetic") from None
    for node in ast.walk(tree):
        match node:
            case ast.Expression() | ast.BinOp() | ast.UnaryOp() | ast.UAdd() | ast.USub() | ast.Load():
                pass
            case ast.Add() | ast.Sub() | ast.Mult() | ast.Div() | ast.Mod() | ast.Pow():
                pass
            case ast.Constant(value=bool()):
                raise ValueError("calculate_output: only numbers, names of graders and arithmetic are allowed")
            case ast.Constant(value=int() | float()):
                pass
            case ast.Call(func=ast.Name(id=function), keywords=[]) if function in FUNCTIONS:
                pass
            case ast.Name(id=name) if name in names or name in FUNCTIONS:
                pass
            case ast.Name(id=name):
                raise ValueError(f"calculate_output: {name!r} is none of the graders ({', '.join(names)})")
            case _:
                raise ValueError("calculate_output: only numbers, names of graders and arithmetic are allowed")
    return tree


def _table(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}
