# expect: pass
import os
try:
    os.fork()
    print("ESCAPED")
except Exception:
    print("contained")
