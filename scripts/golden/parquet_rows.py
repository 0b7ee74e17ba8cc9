"""Writes tests/golden/data/rows.parquet: made-up rows in the layout of allenai/tulu-3-sft-mixture.

Run from the repository root, with pyarrow installed:
    python scripts/golden/parquet_rows.py
"""

import pyarrow as pa
import pyarrow.parquet as pq

TURN = pa.struct([("content", pa.string()), ("role", pa.string())])
SCHEMA = pa.schema([("id", pa.string()), ("messages", pa.list_(TURN)), ("source", pa.string()), ("score", pa.float64())])


def turns(*texts):
    return [{"content": text, "role": role} for text, role in zip(texts, ["user", "assistant"] * 2)]


ROWS = [
    {"id": "a", "messages": turns("Wie viele?", "数列 3."), "source": "s/one", "score": 1.0},
    {"id": None, "messages": turns("q", None), "source": None, "score": None},
    {"id": "c", "messages": turns("q", "a", "r", "b"), "source": "s/two", "score": 2.0},
]

pq.write_table(
    pa.Table.from_pylist(ROWS, SCHEMA), "tests/golden/data/rows.parquet", row_group_size=2, compression="snappy"
)
