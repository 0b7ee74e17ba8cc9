# expect: forbidden|wrong_answer|cpu_time
import os
for fd in range(2, 64):
    try:
        while True:
            os.write(fd, b"D\0\0\0\0" * 1000)
    except OSError:
        pass
