# expect: wrong_answer|runtime_error
import os
for fd in range(2, 64):
    try:
        os.write(fd, b"D\0")
    except OSError:
        pass
os._exit(0)
