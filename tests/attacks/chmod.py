# expect: pass
import os
try:
    os.chmod("/tmp", 0o777)
    print("ESCAPED")
except Exception:
    print("contained")
