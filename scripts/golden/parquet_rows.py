"""Writes made-up rows to tests/golden/data: rows.parquet in the layout of allenai/tulu-3-sft-mixture, the same
with each codec, and turns.parquet with the same rows as turns.jsonl, which use what turns may have.

Run from the repository root, with pyarrow installed:
    python scripts/golden/parquet_rows.py
"""

import json

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

TABLE = pa.Table.from_pylist(ROWS, SCHEMA)
pq.write_table(TABLE, "tests/golden/data/rows.parquet", row_group_size=2, compression="snappy")
for codec in ["none", "gzip", "brotli", "lz4", "zstd"]:
    pq.write_table(TABLE, f"tests/golden/data/rows-{codec}.parquet", compression=codec)

CALL = {"function": {"name": "weather", "arguments": {"city": "Ulm", "days": 3}}}
TURNS = [
    {"id": 9007199254740993, "messages": [
        {"role": "user", "content": [{"type": "text", "text": "Wie "}, {"type": "text", "text": "viele?"}]},
        {"role": "assistant", "content": [{"type": "text", "text": "3"}], "weight": 0},
    ]},
    {"id": None, "messages": [
        {"role": "user", "content": None, "name": "Bo"},
        {"role": "assistant", "content": None, "tool_calls": [CALL], "weight": 1},
    ]},
]
with open("tests/golden/data/turns.jsonl", "w") as file:
    file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in TURNS)
pq.write_table(pa.Table.from_pylist(TURNS), "tests/golden/data/turns.parquet")

# Text that its writer did not call text.
BYTES = pa.struct([("role", pa.binary()), ("content", pa.binary())])
said = [{"role": b"user", "content": "ä".encode()}, {"role": b"assistant", "content": b"b"}]
table = pa.table({"id": pa.array([7], pa.uint64()), "messages": pa.array([said], pa.list_(BYTES))})
pq.write_table(table, "tests/golden/data/bytes.parquet")
