# expect: pass
import os
try:
    os.forkpty()
    print("ESCAPED")
except Exception:
    print("contained")
