# expect: pass
import resource
try:
    resource.setrlimit(resource.RLIMIT_CPU, (resource.RLIM_INFINITY,) * 2)
    print("ESCAPED")
except Exception:
    print("contained")
