"""Every accepted file is read to its end; of every other one it is said what is wrong, and where."""

import gzip
import json
import subprocess
import sys
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from engine.data.endings import ENDINGS, ending_of
from engine.data.files import read_rows
from engine.data.rows import Row, RowProblem
from engine.errors import JobError
from tests.engine.data.broken_files import CASES, QA, TABLE, Case, cell_bomb, page_bomb, turn_bomb


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_a_file_is_read_or_refused_with_row_and_reason(case: Case, tmp_path: Path) -> None:
    """Never a crash, never a hang, and no good row lost beside a bad one."""
    path = case.write(tmp_path)
    found: list[Row | RowProblem] = []
    try:
        for item in read_rows(path):
            found.append(item)
    except JobError as error:
        assert error.reason == case.said, error.message
        assert case.name in error.message
        assert error.advice
        return
    problems = tuple((item.row, item.reason) for item in found if isinstance(item, RowProblem))
    assert problems == (case.said or ())
    assert len(found) - len(problems) == case.rows


@pytest.mark.parametrize("indent", [None, 2])
def test_rows_under_the_only_key_of_an_object_are_read_with_a_note(tmp_path: Path, indent: int | None) -> None:
    """Otherwise files as many APIs return them would be refused, or one conversation would be read as many rows."""
    (tmp_path / "a.json").write_text(json.dumps({"data": [QA] * 3}, indent=indent))
    note, *rows = read_rows(tmp_path / "a.json")
    assert isinstance(note, RowProblem)
    assert (note.row, note.column, note.reason, note.effect) == (0, "data", "ROWS_UNDER_KEY", "warns")
    assert [(row.number, row.values) for row in rows if isinstance(row, Row)] == [(n, QA) for n in (1, 2, 3)]
    turns = {"messages": [{"role": "user", "content": "Why?"}, {"role": "assistant", "content": "So."}]}
    (tmp_path / "b.json").write_text(json.dumps(turns, indent=indent))
    assert [row.values for row in read_rows(tmp_path / "b.json") if isinstance(row, Row)] == [turns]
    # Longer than any row: the object can only be a file of rows, and its other key is found at the end.
    (tmp_path / "c.json").write_text(json.dumps({"data": [QA] * 110_000, "version": 1}, indent=indent))
    *_, last = read_rows(tmp_path / "c.json")
    assert isinstance(last, RowProblem)
    assert last.effect == "refuses"
    assert "save that array alone" in last.message


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ([QA, QA], "one JSON array"),
        ({"data": [QA, QA]}, "with its rows under data"),
        ({"messages": [{"role": "user", "content": "Why?"}]}, "span several lines"),
    ],
)
def test_json_of_another_shape_in_lines_is_told_what_it_is(tmp_path: Path, content: object, said: str) -> None:
    """One sentence, and not a fault for each of its lines; under the name it says, the same file is read."""
    path = tmp_path / "a.jsonl"
    path.write_text(json.dumps(content, indent=1))
    with pytest.raises(JobError, match=said) as caught:
        list(read_rows(path))
    assert "rename it to .json" in caught.value.message
    assert any(isinstance(row, Row) for row in read_rows(path.rename(tmp_path / "a.json")))


@pytest.mark.parametrize("name", ["a.jsonl", "a.json"])
def test_what_a_decoder_cannot_take_is_said_in_words_of_ours(tmp_path: Path, name: str) -> None:
    """Which function of Python's to call helps nobody."""
    row = '{"question": "Why?", "answer": ' + "9" * 6000 + "}"
    (tmp_path / name).write_text(f"[{row}]" if name == "a.json" else row)
    (found,) = read_rows(tmp_path / name)
    assert isinstance(found, RowProblem)
    assert found.message == "has a number of more than 4,300 digits; write it as a string, in quotes"
    (tmp_path / name).write_text((f"[{json.dumps(QA)}]" if name == "a.json" else json.dumps(QA)) + "\n\0")
    *_, last = read_rows(tmp_path / name)
    assert isinstance(last, RowProblem)
    assert (last.row, last.reason) == (2, "NUL_CHARACTER")
    assert "remove it" in last.message


@pytest.mark.parametrize("name", ["a.jsonl", "a.json"])
def test_a_key_that_an_object_has_twice_is_warned_of(tmp_path: Path, name: str) -> None:
    """Half of what was written is lost otherwise, and nobody hears of it."""
    row = '{"question": "Why?", "answer": "So.", "more": {"a": 1, "b": 2, "a": 3}}'
    lines = [json.dumps(QA), row, json.dumps(QA)]
    (tmp_path / name).write_text(f"[{','.join(lines)}]" if name == "a.json" else "\n".join(lines))
    found = list(read_rows(tmp_path / name))
    assert [item.number for item in found if isinstance(item, Row)] == [1, 2, 3]
    (warned,) = (item for item in found if isinstance(item, RowProblem))
    assert (warned.row, warned.column, warned.reason, warned.effect) == (2, "a", "DUPLICATE_KEY", "warns")


def test_cells_that_a_spreadsheet_would_run_stay_text(tmp_path: Path) -> None:
    """A formula in a cell is a string to learn, for us and for whoever reads what we write of it."""
    case = next(case for case in CASES if case.name == "injection.csv")
    first, second = (row.values for row in read_rows(case.write(tmp_path)) if isinstance(row, Row))
    assert first["question"] == "=cmd|' /C calc'!A0"
    assert second == {"question": "+1", "answer": "-1"}


def test_a_row_of_a_table_is_named_by_its_line(tmp_path: Path) -> None:
    """An editor jumps to lines; a cell may hold several of them."""
    (tmp_path / "a.csv").write_bytes(TABLE + b'"one\ntwo",x\nlast,y\n')
    assert [row.number for row in read_rows(tmp_path / "a.csv") if isinstance(row, Row)] == [2, 3, 5]


def test_a_text_is_packed_without_losing_a_character(tmp_path: Path) -> None:
    """A play of a million characters is not one example cut at 2,048 tokens."""
    play = "".join(f"SPEAKER {n}:\nLine of the speech, été {n}.\n" + "\n" * (n % 3 == 0) for n in range(3000))
    play += "x" * 5000 + "\n"
    (tmp_path / "play.txt").write_text(play, encoding="utf-8")
    rows = [row for row in read_rows(tmp_path / "play.txt", max_length=256) if isinstance(row, Row)]
    assert "".join(row.values["text"] for row in rows) == play
    assert all(len(row.values["text"].encode()) <= 512 for row in rows)
    assert [row.continues for row in rows] == [True] * (len(rows) - 1) + [False]
    lines = play.splitlines()
    assert all(row.values["text"].split("\n")[0] in lines[row.number - 1] for row in rows)


def test_a_text_ends_before_blank_lines(tmp_path: Path) -> None:
    """Otherwise its end is not trained, and a model goes on after its last sentence."""
    (tmp_path / "play.txt").write_text("The end.\n" + "\n" * 10_000)
    (row,) = (row for row in read_rows(tmp_path / "play.txt", max_length=256) if isinstance(row, Row))
    assert (row.values["text"].strip(), row.continues) == ("The end.", False)


def test_a_large_array_is_read_in_a_small_memory(tmp_path: Path) -> None:
    """Files are larger than machines."""
    row = json.dumps({"question": "Why? " * 20, "answer": "So. " * 100})
    with (tmp_path / "a.json").open("w") as file:
        file.write("[" + ",".join([row] * 40_000) + "]")
    tracemalloc.start()
    assert sum(1 for _ in read_rows(tmp_path / "a.json")) == 40_000
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 4 << 20


def test_a_text_that_all_rows_of_a_table_share_makes_it_no_bomb(tmp_path: Path) -> None:
    """Parquet stores it once. The memory that the rows take is that of a few of them."""
    shared, count = "You are kind. " * 300, 20_000
    columns = {"system": [shared] * count, "question": [f"Why {n}?" for n in range(count)], "answer": ["So."] * count}
    pq.write_table(pa.table(columns), tmp_path / "a.parquet", compression="zstd")
    del columns
    assert len(shared) * count > 500 * (tmp_path / "a.parquet").stat().st_size
    tracemalloc.start()
    assert sum(isinstance(row, Row) for row in read_rows(tmp_path / "a.parquet")) == count
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 4 << 20


@pytest.mark.parametrize("write", [cell_bomb, turn_bomb, page_bomb])
def test_a_small_table_of_gigabytes_is_refused_in_a_small_memory(tmp_path: Path, write: Callable[[Path], None]) -> None:
    """With advice for a table: there is nothing to leave unpacked."""
    write(tmp_path / "a.parquet")
    code = (
        "import resource, sys, pathlib, pyarrow.parquet\n"
        "from engine.data.files import read_rows\n"
        "from engine.errors import JobError\n"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "try:\n"
        "    for _ in read_rows(pathlib.Path(sys.argv[1])): pass\n"
        "except JobError as error:\n"
        "    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before, error.reason, error.advice)\n"
    )
    command = [sys.executable, "-c", code, str(tmp_path / "a.parquet")]
    said = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stdout
    grown, reason, advice = said.split(maxsplit=2)
    assert (reason, "system_prompt" in advice) == ("DECOMPRESSION_BOMB", True)
    assert int(grown) < 100 << 10


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (json.dumps(QA) + "\r" + json.dumps(QA) + "\r", "carriage returns"),
        (json.dumps(QA) + "\n\ufeff" + json.dumps(QA) + "\n", "a byte-order mark at column 1"),
    ],
)
def test_what_an_editor_does_not_show_is_named(tmp_path: Path, content: str, said: str) -> None:
    (tmp_path / "a.jsonl").write_text(content, encoding="utf-8", newline="")
    (found,) = (item for item in read_rows(tmp_path / "a.jsonl") if isinstance(item, RowProblem))
    assert said in found.message


def test_a_file_packed_twice_is_told_what_it_is(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress(gzip.compress(json.dumps(QA).encode())))
    with pytest.raises(JobError, match="compressed twice"):
        list(read_rows(tmp_path / "a.jsonl.gz"))


def test_the_ending_is_found_in_any_name() -> None:
    assert [ending_of(name) for name in ("a.b.CSV", "x.jsonl.gz", ".jsonl", "jsonl", "a.gz", "a.parquet.zst")] == [
        "csv", "jsonl.gz", "jsonl", None, None, None,
    ]  # fmt: skip
    assert all(ending_of(f"file.{ending}") == ending for ending in ENDINGS)


TOOLS = [{"type": "function", "function": {"name": "f", "parameters": {}}}]
TURNS = [{"role": "user", "content": "Go."}, {"role": "assistant", "content": "Done."}]


@pytest.mark.parametrize(
    "row",
    [
        {"tools": TOOLS, "messages": TURNS},
        {"sources": [{"url": "u"}], **QA},
        {"sources": [{"url": "u" * (2 << 20)}], **QA},
        {"data": [QA], "version": 1},
        {"tools": TOOLS},
    ],
    ids=["tools", "sources", "2-mib", "version", "tools-alone"],
)
def test_an_object_whose_first_key_holds_an_array_of_objects_is_a_row(tmp_path: Path, row: dict[str, object]) -> None:
    """The order of keys means nothing in JSON. Only an object with no other key can be a file of rows."""
    line, pretty = json.dumps(row), json.dumps(row, indent=1)
    files = {
        "a.jsonl": line, "b.jsonl": f"{line}\n{line}\n", "c.jsonl.gz": line,
        "a.json": line, "b.json": pretty, "c.json": f"{pretty}\n{pretty}\n", "d.json": f"[{line}]", "e.json.gz": pretty,
    }  # fmt: skip
    for name, content in files.items():
        data = content.encode()
        (tmp_path / name).write_bytes(gzip.compress(data) if name.endswith(".gz") else data)
        found = list(read_rows(tmp_path / name))
        rows = [row, row] if name in ("b.jsonl", "c.json") else [row]
        assert [one.values for one in found if isinstance(one, Row)] == rows, name
        assert len(found) == len(rows), name


def test_a_broken_row_is_no_file_of_rows(tmp_path: Path) -> None:
    """Its first array is not read as rows, and the rows after it are."""
    (tmp_path / "a.jsonl").write_text('{"sources": [{"url": "u"}], "question": "Why\n' + json.dumps(QA) + "\n")
    first, second = read_rows(tmp_path / "a.jsonl")
    assert isinstance(first, RowProblem)
    assert (first.row, first.reason) == (1, "NOT_JSON")
    assert isinstance(second, Row)


@pytest.mark.parametrize("line", ["sep=;\n", "SEP=;\r\n", '"sep=;"\n', "sep=|\n", "sep=\t\n"])
def test_the_line_by_which_excel_is_told_the_delimiter_is_no_header(tmp_path: Path, line: str) -> None:
    delimiter = line.strip('"\r\n')[-1]
    table = f"question{delimiter}answer, in short\nHow many?{delimiter}2\n"
    (tmp_path / "a.csv").write_text(line + table, newline="")
    assert list(read_rows(tmp_path / "a.csv")) == [Row(3, {"question": "How many?", "answer, in short": "2"})]
