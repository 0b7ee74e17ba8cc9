# expect: wrong_answer
# cases: 3
import os
for fd in range(2, 64):
    try:
        os.write(fd, b"D\0\0\0\0" * 100)
    except OSError:
        pass
print("forged")
