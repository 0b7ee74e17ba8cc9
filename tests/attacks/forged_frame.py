# expect: wrong_answer
import os
for fd in range(2, 64):
    try:
        os.write(fd, b"D\0\0\0\0")
    except OSError:
        pass
