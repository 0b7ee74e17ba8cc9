# expect: cpu_time
import os
while True:
    try:
        os.fork()
    except OSError:
        pass
