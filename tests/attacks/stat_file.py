# expect: pass
import os
try:
    os.stat("/etc/passwd")
    print("ESCAPED")
except Exception:
    print("contained")
