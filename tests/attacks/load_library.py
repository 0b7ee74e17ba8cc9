# expect: pass
import ctypes
try:
    ctypes.CDLL("/lib/x86_64-linux-gnu/libutil.so.1")
    print("ESCAPED")
except OSError:
    print("contained")
