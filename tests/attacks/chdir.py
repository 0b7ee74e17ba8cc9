# expect: pass
import os
try:
    os.chdir("/")
    print("ESCAPED")
except Exception:
    print("contained")
