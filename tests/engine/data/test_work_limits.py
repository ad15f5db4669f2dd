"""One job or request cannot hold a probe for hours, whatever its templates, its tokenizer and its rows are."""

import json
import re
import resource
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from engine.config.job import job_config
from engine.data import template_limits, tokenizer_limit
from engine.data.blocks import BlockSize
from engine.data.prepare import examine, prepare
from engine.data.preview import preview
from engine.data.template_limits import limited_time
from engine.data.tokenizer import Tokenizer
from engine.data.validation import Report
from engine.data.work_limits import PROCESSOR_LIMIT, WorkLimits
from engine.errors import JobError, LimitExceeded
from tests.tiny_models import make_tiny_tokenizer

SLOW = "{% for i in range(40000) %}{% set x = i %}{% endfor %}"
"""Takes far less than the limit of a row."""
ROW_TEMPLATE = SLOW + '{"text": {{ text | tojson }}}'
CHAT_TEMPLATE = SLOW * 20 + "{% for turn in messages %}{{ turn.content }}{{ eos_token }}{% endfor %}"


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    path = tmp_path / "rows.jsonl"
    answer = {"role": "assistant", "content": "b"}
    lines = ({"text": f"row {n}", "messages": [{"role": "user", "content": str(n)}, answer]} for n in range(2000))
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


@pytest.fixture(autouse=True)
def no_limits(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(limited_time, "total_seconds", limited_time.total_seconds)
    monkeypatch.setattr(limited_time, "_used", 0.0)
    monkeypatch.setattr(limited_time, "_uses", 0)
    yield


@pytest.mark.parametrize(
    "spec",
    [
        {"training_data": [{"dataset": "d", "template": ROW_TEMPLATE}]},
        {"training_data": [{"dataset": "d", "format": "chat"}], "chat_template": CHAT_TEMPLATE},
    ],
    ids=["row template", "chat template"],
)
def test_many_slow_rows_have_a_limit_together(tmp_path: Path, rows: Path, spec: dict[str, Any]) -> None:
    """A template just below the limit of a row, in every row, would hold a slot of the probe for hours."""
    config = job_config({"base_model": "m", **spec})
    tokenizer_dir = make_tiny_tokenizer(tmp_path / "model")
    WorkLimits(template_seconds=1.0).apply()

    def validate() -> None:
        examine(config, tokenizer_dir, {"d": rows}, lambda *_: None, Report())

    def job() -> None:
        prepare(config, tokenizer_dir, {"d": rows}, tmp_path / "out", lambda *_: None)

    calls: list[Callable[[], object]] = [lambda: list(preview(config, tokenizer_dir, rows, 1)), validate, job]
    for call in calls:
        limited_time._used, limited_time._uses = 0.0, 0
        with pytest.raises(
            LimitExceeded, match=r"took \d\.\d seconds .* first [\d,]+ rows; 1 seconds and 1 ms"
        ) as caught:
            call()
        assert (caught.value.reason, caught.value.setting) == ("TEMPLATE_TOO_SLOW", "FTF_PROBE_MAX_TEMPLATE_SECONDS")


def test_the_limit_of_templates_holds_in_the_processes_of_a_large_job(tmp_path: Path, rows: Path) -> None:
    source = {"dataset": "d", "template": ROW_TEMPLATE, "format": "text"}
    config = job_config({"base_model": "m", "training_data": [source]})
    limits = WorkLimits(template_seconds=1.0)
    with pytest.raises(LimitExceeded) as caught:
        prepare(
            config,
            make_tiny_tokenizer(tmp_path / "model"),
            {"d": rows},
            tmp_path / "out",
            lambda *_: None,
            processes=2,
            min_bytes=0,
            limits=limits,
        )
    assert caught.value.reason == "TEMPLATE_TOO_SLOW"


@pytest.mark.parametrize(
    ("limits", "reason", "said"),
    [
        (WorkLimits(tokens=100), "TOO_MANY_TOKENS", "more than 100 tokens"),
        (WorkLimits(shard_bytes=1000), "SHARDS_TOO_LARGE", "more than 1,000 bytes"),
    ],
)
def test_tokens_and_shards_have_a_limit(tmp_path: Path, rows: Path, limits: WorkLimits, reason: str, said: str) -> None:
    """A weight of 100 turns a small file into shards that fill the disk of the probe."""
    config = job_config({"base_model": "m", "training_data": [{"dataset": "d", "format": "text", "weight": 100}]})
    tokenizer_dir = make_tiny_tokenizer(tmp_path / "model")
    for number, call in enumerate((prepare, examine)):
        with pytest.raises(LimitExceeded, match=said) as caught:
            if call is prepare:
                prepare(config, tokenizer_dir, {"d": rows}, tmp_path / str(number), lambda *_: None, limits=limits)
            else:
                examine(config, tokenizer_dir, {"d": rows}, lambda *_: None, Report(), limits=limits)
        assert caught.value.reason == reason


def test_processor_time_has_a_limit() -> None:
    """Work that does not look at its limit is ended by the kernel, with the same reason."""
    limits = WorkLimits(processor_seconds=1e-9, processor_setting="FTF_PROBE_MAX_QUERY_SECONDS")
    with pytest.raises(LimitExceeded, match="processor time") as caught:
        limits.check_processor_time()
    assert (caught.value.reason, caught.value.setting) == ("PROCESSOR_TIME_EXCEEDED", "FTF_PROBE_MAX_QUERY_SECONDS")
    code = (
        "from engine.data import work_limits; work_limits._GRACE_SECONDS = 0\n"
        "work_limits.WorkLimits(processor_seconds=1).apply()\n"
        "while True: pass"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], env={"PYTHONPATH": ":".join(sys.path)}, check=False, timeout=120
    )
    assert limits.deaths()[done.returncode].reason == "PROCESSOR_TIME_EXCEEDED"
    assert done.returncode == -PROCESSOR_LIMIT


def test_the_limit_of_processor_time_is_that_of_all_processes(tmp_path: Path) -> None:
    """A job on a probe with 64 cores could otherwise use 64 times of what is allowed."""
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps({"text": f"This is row {n}."}) + "\n" for n in range(200)))
    config = job_config({"base_model": "m", "training_data": [{"dataset": "d", "format": "text"}]})
    tokenizer_dir = make_tiny_tokenizer(tmp_path / "model")

    def run(name: str, limits: WorkLimits) -> None:
        files, out = {"d": path}, tmp_path / name
        prepare(
            config,
            tokenizer_dir,
            files,
            out,
            lambda *_: None,
            processes=4,
            limits=limits,
            min_bytes=0,
            block_size=BlockSize(num_bytes=500),
        )

    def used(who: int) -> float:
        usage = resource.getrusage(who)
        return usage.ru_utime + usage.ru_stime

    before = used(resource.RUSAGE_CHILDREN)
    run("unlimited", WorkLimits())
    all_four = used(resource.RUSAGE_CHILDREN) - before
    # Each of the four uses about half of what is left to them.
    left = all_four / 2
    limits = WorkLimits(processor_seconds=used(resource.RUSAGE_SELF) + used(resource.RUSAGE_CHILDREN) + left)
    own = used(resource.RUSAGE_SELF)
    with pytest.raises(LimitExceeded, match="processor time"):
        run("limited", limits)
    assert used(resource.RUSAGE_SELF) - own < left, "not this process exceeded it"


def hostile_tokenizer(folder: Path, expression: str) -> Path:
    """Writes a tokenizer that splits texts with a regular expression."""
    make_tiny_tokenizer(folder)
    described = json.loads((folder / "tokenizer.json").read_text())
    split = {"type": "Split", "pattern": {"Regex": expression}, "behavior": "Isolated", "invert": False}
    described["pre_tokenizer"] = {"type": "Sequence", "pretokenizers": [split, described["pre_tokenizer"]]}
    (folder / "tokenizer.json").write_text(json.dumps(described))
    return folder


def test_a_tokenizer_that_fails_is_named(tmp_path: Path) -> None:
    """Its expression exceeds the limit of the library, which panics: an INTERNAL error would blame the server."""
    tokenizer = Tokenizer(hostile_tokenizer(tmp_path, "(a+)+$"))
    with pytest.raises(JobError, match=re.escape("tokenizer (tokenizer.json) fails")) as caught:
        tokenizer.encode_all(["a" * 60 + "!"])
    assert (caught.value.reason, caught.value.violations[0].field) == ("BAD_TOKENIZER", "spec.base_model")


def test_a_tokenizer_that_does_not_end_ends_its_process(tmp_path: Path) -> None:
    """Each match stays below the library's own limit, and the text has many: nothing else would end it."""
    folder = hostile_tokenizer(tmp_path, "(a+)+b")
    code = (
        "import sys; from pathlib import Path; from engine.data import tokenizer_limit\n"
        "from engine.data.tokenizer import Tokenizer\n"
        "tokenizer = Tokenizer(Path(sys.argv[1])); tokenizer_limit.BASE_SECONDS = 0.5\n"
        "tokenizer.encode_all([('a' * 19 + ' ') * 20_000])\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(folder)], env={"PYTHONPATH": ":".join(sys.path)}, check=False, timeout=300
    )
    assert done.returncode == -tokenizer_limit.TOKENIZER_LIMIT
    assert WorkLimits().deaths()[done.returncode].reason == "BAD_TOKENIZER"


def test_a_tokenizer_that_cannot_be_loaded_is_named(tmp_path: Path) -> None:
    make_tiny_tokenizer(tmp_path)
    (tmp_path / "tokenizer.json").write_text('{"version": "1.0", "model": {"type": "Unheard"}}')
    with pytest.raises(JobError, match="cannot be loaded") as caught:
        Tokenizer(tmp_path)
    assert caught.value.reason == "BAD_TOKENIZER"


def test_a_usual_tokenizer_is_not_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The limit of templates uses the same signal, and must work before and after a text is encoded."""
    monkeypatch.setattr(template_limits, "MAX_SECONDS", 0.5)
    tokenizer = Tokenizer(
        make_tiny_tokenizer(tmp_path), "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}"
    )
    for _ in range(2):
        with pytest.raises(JobError, match=r"more than 0\.5 seconds"):
            tokenizer.render([])
        assert len(tokenizer.encode("some text").ids) > 0


def test_a_huge_chat_template_is_refused_before_it_is_compiled(tmp_path: Path) -> None:
    """Compiling it takes several times its size, so whether it fits into the limit would depend on the machine."""
    tokenizer = Tokenizer(make_tiny_tokenizer(tmp_path), "a" * ((1 << 20) + 1))
    with pytest.raises(JobError, match="1,048,577 characters") as caught:
        tokenizer.render([{"role": "user", "content": "b"}])
    assert caught.value.reason == "TEMPLATE_EXCEEDED"
