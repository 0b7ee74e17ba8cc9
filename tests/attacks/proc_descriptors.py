# expect: pass
import os
try:
    os.listdir("/proc/self/fd")
    print("ESCAPED")
except Exception:
    print("contained")
