# expect: pass
import os
try:
    os.utime("/tmp")
    print("ESCAPED")
except Exception:
    print("contained")
