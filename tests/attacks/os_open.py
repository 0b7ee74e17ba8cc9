# expect: pass
import os
try:
    os.open("/etc/passwd", os.O_RDONLY)
    print("ESCAPED")
except Exception:
    print("contained")
