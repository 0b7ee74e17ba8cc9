# expect: pass
import os
try:
    os.getcwd()
    print("ESCAPED")
except Exception:
    print("contained")
