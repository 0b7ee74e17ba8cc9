# expect: pass
import os
try:
    os.lstat("/")
    print("ESCAPED")
except Exception:
    print("contained")
