"""Tasks of lm-evaluation-harness for tests, with their data."""

import json
from pathlib import Path

DATA = """
dataset_path: json
dataset_kwargs:
  data_files:
    test: {rows}
test_split: test
doc_to_text: "{{{{question}}}}"
"""
SUMS = """
task: sums
output_type: generate_until
doc_to_target: "{{answer}}"
generation_kwargs:
  max_gen_toks: 6
  until: ["\\n"]
metric_list:
  - metric: exact_match
    aggregation: mean
    higher_is_better: true
metadata:
  version: 1.5
""" + DATA.format(rows="sums.jsonl")
COLOURS = """
task: colours
tag: [choices]
output_type: multiple_choice
doc_to_choice: ["red", "green", "blue"]
doc_to_target: "{{answer}}"
""" + DATA.format(rows="colours.jsonl")


def write_tasks(folder: Path, **more: str) -> Path:
    """Writes `sums` (6 rows), `colours` (6 rows) and their tag `choices`; and further files, named without `.yaml`."""
    folder.mkdir(parents=True)
    for name, text in {"sums": SUMS, "colours": COLOURS, **more}.items():
        (folder / f"{name}.yaml").write_text(text)
    sums = [{"question": f"What is {i}+{i}?", "answer": str(2 * i)} for i in range(6)]
    colours = [{"question": f"Which colour has thing {i}?", "answer": i % 3} for i in range(6)]
    for name, rows in (("sums", sums), ("colours", colours)):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder
