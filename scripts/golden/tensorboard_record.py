"""Writes one event with two scalars as TensorBoard itself frames it, in hexadecimal.

Run: python scripts/golden/tensorboard_record.py > tests/golden/tensorboard_record.hex
Needs: tensorboard 2.x
"""

import io

from tensorboard.compat.proto.event_pb2 import Event
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.summary.writer.record_writer import RecordWriter

scalars = [
    Summary.Value(tag="loss", simple_value=0.25),
    Summary.Value(tag="reward/mean", simple_value=-1.0),
]
event = Event(wall_time=1.5, step=300, summary=Summary(value=scalars))
out = io.BytesIO()
RecordWriter(out).write(event.SerializeToString())
print(out.getvalue().hex())
