# expect: pass
import os
try:
    os.readlink("/proc/self/exe")
    print("ESCAPED")
except Exception:
    print("contained")
