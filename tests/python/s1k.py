"""Writes tests/python/s1k.parquet and s1k.jsonl: rows of our own with the schema of simplescaling/s1K, including its
column of type null, as Hugging Face's tools write them.

    python tests/python/s1k.py

Needs pyarrow.
"""

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

HERE = Path(__file__).resolve().parent
SCHEMA = pa.schema([
    ("solution", pa.string()), ("question", pa.string()), ("cot_type", pa.string()), ("source_type", pa.string()),
    ("metadata", pa.string()), ("cot", pa.null()), ("thinking_trajectories", pa.list_(pa.string())),
    ("attempt", pa.string()),
])


def rows():
    for k in range(12):
        a, b = k % 4 + 1, (k * 3) % 4 + 1
        yield {
            "solution": f"{a}{b}", "question": f"{a}|{b}", "cot_type": "math", "source_type": "made/up",
            "metadata": "{'n': %d}" % k, "cot": None,
            "thinking_trajectories": [f"{a} ü " + "1234"[: k % 4 + 1], "unused"], "attempt": f"{a}{b}",
        }


table = list(rows())
pq.write_table(pa.Table.from_pylist(table, schema=SCHEMA), HERE / "s1k.parquet", row_group_size=5)
(HERE / "s1k.jsonl").write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in table))
