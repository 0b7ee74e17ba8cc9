# expect: pass
import os
try:
    os.setxattr("/tmp", "user.a", b"1")
    print("ESCAPED")
except Exception:
    print("contained")
