# expect: forbidden|wrong_answer
import os
for fd in range(2, 64):
    try:
        os.write(fd, b"E\xff\xff\xff\xff" + b"x" * 100)
    except OSError:
        pass
