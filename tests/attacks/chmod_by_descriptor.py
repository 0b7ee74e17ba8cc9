# expect: pass
import os
try:
    os.fchmod(1, 0o777)
    print("ESCAPED")
except Exception:
    print("contained")
