# expect: pass
import os
try:
    assert os.access("/etc/passwd", os.R_OK)
    print("ESCAPED")
except Exception:
    print("contained")
