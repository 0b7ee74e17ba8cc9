# expect: forbidden|wrong_answer
import os
for fd in range(2, 64):
    try:
        os.write(fd, b"\xff" * 100)
    except OSError:
        pass
