# expect: wrong_answer
# cases: 3
import os, time
for fd in range(3, 32):
    try:
        os.lseek(fd, 0, 1)
    except OSError as error:
        if error.errno == 29:
            os.write(fd, b"D\0\0\0\0")
            os.close(fd)
while True:
    pass
