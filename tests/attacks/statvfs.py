# expect: pass
import os
try:
    os.statvfs("/")
    print("ESCAPED")
except Exception:
    print("contained")
