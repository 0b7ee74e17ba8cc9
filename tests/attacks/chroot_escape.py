# expect: pass
import os
try:
    os.mkdir("x")
    os.chroot("x")
    for _ in range(64):
        os.chdir("..")
    os.chroot(".")
    open("etc/passwd")
    print("ESCAPED")
except OSError:
    print("contained")
