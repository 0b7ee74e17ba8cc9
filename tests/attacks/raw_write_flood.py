# expect: output_limit|cpu_time
import os
while True:
    try:
        os.write(1, b"x" * 100_000)
    except OSError:
        pass
