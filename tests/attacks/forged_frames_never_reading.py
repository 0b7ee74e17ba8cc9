# expect: wrong_answer|forbidden
# cases: 1000
import os, time
for turn in range(600):
    for fd in range(3, 32):
        try:
            os.lseek(fd, 0, 1)
        except OSError as error:
            if error.errno == 29:
                os.write(fd, b"D\0\0\0\0")
    if turn % 50 == 0:
        time.sleep(0.02)
time.sleep(1000)
