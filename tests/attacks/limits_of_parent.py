# expect: pass
import os, resource
try:
    resource.prlimit(os.getppid(), resource.RLIMIT_AS, (1, 1))
    print("ESCAPED")
except Exception:
    print("contained")
