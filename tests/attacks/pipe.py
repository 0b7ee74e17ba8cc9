# expect: pass
import os
try:
    os.pipe()
    print("ESCAPED")
except Exception:
    print("contained")
