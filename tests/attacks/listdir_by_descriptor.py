# expect: pass
import os
try:
    os.listdir(4)
    print("ESCAPED")
except Exception:
    print("contained")
