# expect: pass
import os
try:
    os.listdir("/")
    print("ESCAPED")
except Exception:
    print("contained")
