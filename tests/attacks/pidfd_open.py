# expect: pass
import os
try:
    os.pidfd_open(1)
    print("ESCAPED")
except Exception:
    print("contained")
