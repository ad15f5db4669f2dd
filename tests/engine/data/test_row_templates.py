"""One row of a table becomes the examples its template writes; a bad template ends, and says where."""

import gc
import json
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from typing import Any

import pytest

from engine.data import template_limits
from engine.data.row_templates import RowTemplate
from engine.data.rows import Row, RowProblem
from engine.errors import JobError

PROFILE = {"age": "25", "goal": 'build "muscle"', "workout": "Squats,\nthree times.", "column 4": "x"}
FITBOX = """
{% set about %}I am {{ age }} and want to {{ goal }}.{% endset %}
[
 {"question": {{ ("Which workout? " ~ about) | tojson }}, "answer": {{ workout | tojson }}},
 {"question": {{ ("What do I eat? " ~ about) | tojson }}, "answer": "{{ 1600 + 20 * (age | int) }} kcal a day"},
 {"question": {{ ("Any advice? " ~ about) | tojson }}, "answer": {{ row["column 4"] | tojson }}}
]
"""


def apply(source: str, values: dict[str, Any] | None = None) -> list[Row | RowProblem]:
    template = RowTemplate(source, "spec.training_data[0].template")
    return list(template.apply(Row(7, PROFILE if values is None else values)))


def test_one_profile_becomes_three_examples() -> None:
    """Otherwise a table's row could not yield several examples, or its quotes and line breaks would be lost."""
    rows = apply(FITBOX)
    assert [row.number for row in rows if isinstance(row, Row)] == [7, 7, 7]
    first, second, _ = (row.values for row in rows if isinstance(row, Row))
    assert first["question"] == 'Which workout? I am 25 and want to build "muscle".'
    assert first["answer"] == PROFILE["workout"]
    assert second["answer"] == "2100 kcal a day"


def test_a_template_can_leave_rows_out() -> None:
    only_old = '{% if age | int > 30 %}{"text": "old"}{% endif %}'
    assert apply(only_old) == []
    assert len(apply(only_old, {"age": "31"})) == 1


@pytest.mark.parametrize(
    ("source", "said"),
    [
        ('{"text": "{{ agee }}"}', "did you mean age?"),
        ('{"text": {{ agee | tojson }}}', "'agee' is undefined; did you mean age?"),
        ('{"text": {{ [nosuch] | tojson }}}', "'nosuch' is undefined; the row has age, goal, workout, column 4"),
        ('{"text": {{ row.agee | tojson }}}', "no attribute 'agee'; did you mean age?"),
        ('{"text": "{{ goal }}"}', "does not write JSON"),
        ("[1]", "a JSON number"),
        ('{"text": {{ 1 / 0 }}}', "division by zero"),
        ("{{ ''.__class__ }}", "__class__"),
        ("{{ ''.__class__.__mro__[1].__subclasses__() }}", "__class__"),
        ("{{ row.__class__.__init__.__globals__ }}", "unsafe"),
        ("{{ ''|attr('__class__') }}", "__class__"),
        ("{{ cycler.__init__.__globals__.os }}", "__init__"),
        ("{{ self.__init__.__globals__ }}", "__init__"),
        ("{{ '{0.__class__}'.format(1) }}", "__class__"),
        ("{% set _ = row.update({'a': 1}) %}", "unsafe"),
        ("{% include '/etc/passwd' %}", "no loader"),
        ("{{ range(10**6) | list }}", "Range too big"),
        ("{{ '%1000000000d' % 1 }}", "not available"),
    ],
)
def test_a_template_that_fails_or_reaches_out_names_the_row(source: str, said: str) -> None:
    """It runs where the data is; what it may reach is the row."""
    (found,) = apply(source)
    assert isinstance(found, RowProblem)
    assert (found.row, found.column) == (7, "template")
    assert said in found.message


@pytest.mark.parametrize(
    "source",
    [
        "{% macro m(n) %}{{ m(n + 1) }}{% endmacro %}{{ m(0) }}",
        "{% for x in [1] recursive %}{{ loop([1]) }}{% endfor %}",
        "{% for a in range(9999) %}{% for b in range(9999) %}{% set x = a %}{% endfor %}{% endfor %}",
        "{% macro m(n) %}{% for i in range(9) %}{{ m(n + 1) if n < 90 }}{% endfor %}{% endmacro %}{{ m(0) }}",
        "{% for i in range(99999) %}{{ 'a' * 1000 }}{% endfor %}",
        "{% set n = namespace(x='aaaa') %}{% for i in range(60) %}{% set n.x = n.x ~ n.x %}{% endfor %}",
        "{% set n = namespace(x=[1]) %}{% for i in range(60) %}{% set n.x = n.x + n.x %}{% endfor %}",
        "{% set n = namespace(x=3) %}{% for i in range(60) %}{% set n.x = n.x * n.x %}{% endfor %}",
        "{{ 'a' * 10000000000 }}",
        "{{ 10 ** (10 ** 10) }}",
        "{{ 'x' | center(10000000000) }}",
        "{% for i in range(99999) %}{% set _ = range(99999) | sort | list %}{% endfor %}",
    ],
)
def test_a_template_without_end_ends(source: str) -> None:
    """Loops, memory and numbers without bound: refused once, not once for every row, and never the end of a machine."""
    began = time.monotonic()
    with pytest.raises(JobError) as caught:
        apply(source)
    assert caught.value.reason == "TEMPLATE_EXCEEDED"
    assert caught.value.violations[0].field == "spec.training_data[0].template"
    assert "row 7" in caught.value.message
    assert time.monotonic() - began < 20 * template_limits.MAX_SECONDS


@pytest.mark.parametrize("source", ["{% for %}", "{{ unclosed", "{% endif %}", "{{ " + "(" * 500 + ")" * 500 + " }}"])
def test_a_template_that_is_none_is_refused_at_once(source: str) -> None:
    with pytest.raises(JobError) as caught:
        apply(source)
    assert caught.value.reason == "BAD_TEMPLATE"


def test_templates_are_quick_enough_for_tables() -> None:
    """Limits that cost more than the work would be switched off."""
    template = RowTemplate(FITBOX, "spec.training_data[0].template")
    made = [row for number in range(973) for row in template.apply(Row(number, PROFILE))]
    assert len(made) == 2919
    assert json.dumps([row.values for row in made if isinstance(row, Row)])


ENDLESS = """{% set n = namespace(a=[1], b=[1]) %}{% for i in range(60) %}{% set n.a = [n.a, n.a] %}
{% set n.b = [n.b, n.b] %}{% endfor %}{{ n.a == n.b }}"""
"""A single comparison, of more steps than there are seconds left to the sun."""


@pytest.fixture
def no_collector_callbacks() -> Iterator[None]:
    """Removes those that libraries of tests add, in which Python ignores exceptions."""
    callbacks = gc.callbacks[:]
    gc.callbacks.clear()
    yield
    gc.callbacks[:] = callbacks


# The time limit is repeated because an exception is lost where Python ignores it, such as in a finalizer.
@pytest.mark.filterwarnings("ignore:Exception ignored in:pytest.PytestUnraisableExceptionWarning")
@pytest.mark.usefixtures("no_collector_callbacks")
def test_filters_that_take_too_long_are_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    """They are no steps of the template: one of them counts to a billion."""
    monkeypatch.setattr(template_limits, "MAX_SECONDS", 0.2)
    with pytest.raises(JobError) as caught:
        apply("{{ [1] | slice(10 ** 9) | list }}")
    assert caught.value.reason == "TEMPLATE_EXCEEDED"
    assert signal.getitimer(signal.ITIMER_PROF) == (0.0, 0.0)
    assert signal.getitimer(signal.ITIMER_VIRTUAL) == (0.0, 0.0)


@pytest.mark.long
@pytest.mark.filterwarnings("ignore:Exception ignored in:pytest.PytestUnraisableExceptionWarning")
def test_a_template_ends_whose_time_passes_in_callbacks_of_the_garbage_collector() -> None:
    """Python ignores exceptions there, so a template that is slow by its garbage would end the process."""
    program = (
        "import gc, sys, time; from engine.data import row_templates, template_limits\n"
        "from engine.data.rows import Row\n"
        "def collected(phase, info):\n"
        "    ended = time.process_time() + 0.01\n"
        "    while time.process_time() < ended: pass\n"
        "template_limits.MAX_SECONDS, template_limits.GRACE_SECONDS = 0.3, 3.0\n"
        "template = row_templates.RowTemplate(sys.stdin.read(), 'template')\n"
        "gc.callbacks.append(collected); gc.set_threshold(1)\n"
        "list(template.apply(Row(1, {})))"
    )
    source = "{% for i in range(99999) %}{% set _ = [[], [[]]] %}{% endfor %}"
    done = subprocess.run([sys.executable, "-c", program], input=source, capture_output=True, text=True, timeout=60)
    assert "The row template exceeds a limit for row 1" in done.stderr, done.returncode


@pytest.mark.parametrize("left", [template_limits.limited_time, template_limits.limited_steps])
def test_a_time_limit_that_is_reached_at_the_end_of_a_template_is_switched_off(left: type) -> None:
    """Its signal would otherwise end the process during later work."""

    def interrupt(frame: Any, event: str, _argument: Any) -> None:
        if event == "call" and frame.f_code is left.__exit__.__code__:  # type: ignore[attr-defined]
            handle = signal.getsignal(signal.SIGPROF)
            assert callable(handle)
            handle(signal.SIGPROF, frame)

    before = sys.getprofile()
    try:
        with left():
            sys.setprofile(interrupt)
    finally:
        sys.setprofile(before)
    assert signal.getitimer(signal.ITIMER_PROF) == (0.0, 0.0)
    assert signal.getitimer(signal.ITIMER_VIRTUAL) == (0.0, 0.0)


def test_what_hears_no_signal_ends_with_its_process() -> None:
    """The child that looks at rows dies, and whoever waits for it knows of what."""
    program = (
        "import sys; from engine.data import row_templates, template_limits; from engine.data.rows import Row\n"
        "template_limits.MAX_SECONDS = template_limits.GRACE_SECONDS = 0.1\n"
        "list(row_templates.RowTemplate(sys.stdin.read(), 'template').apply(Row(1, {})))"
    )
    done = subprocess.run([sys.executable, "-c", program], input=ENDLESS, text=True, timeout=60, check=False)
    assert done.returncode == -template_limits.CPU_LIMIT
