# expect: pass
import os
escaped = False
for fd in range(1024):
    for step in (lambda: os.fchdir(fd), lambda: os.open("etc/passwd", 0, dir_fd=fd), lambda: os.listdir(fd)):
        try:
            step()
            escaped = True
        except OSError:
            pass
print("ESCAPED" if escaped else "contained")
