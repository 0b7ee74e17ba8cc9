# expect: pass
import os
try:
    os.popen("id").read()
    print("ESCAPED")
except Exception:
    print("contained")
