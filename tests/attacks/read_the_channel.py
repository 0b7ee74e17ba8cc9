# expect: wall_time
import os
for fd in range(2, 64):
    try:
        os.read(fd, 100)
    except OSError:
        pass
print("contained")
