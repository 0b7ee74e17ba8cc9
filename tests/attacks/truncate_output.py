# expect: pass
import os
try:
    os.ftruncate(1, 10**12)
    print("ESCAPED")
except Exception:
    print("contained")
