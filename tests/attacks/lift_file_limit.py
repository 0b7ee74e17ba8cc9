# expect: pass
import resource
try:
    resource.setrlimit(resource.RLIMIT_FSIZE, (10**12, 10**12))
    print("ESCAPED")
except Exception:
    print("contained")
