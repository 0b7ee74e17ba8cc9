# expect: pass
import os
try:
    list(os.scandir("."))
    print("ESCAPED")
except Exception:
    print("contained")
