# expect: pass
import os
try:
    os.posix_spawn("/bin/true", ["true"], {})
    print("ESCAPED")
except Exception:
    print("contained")
