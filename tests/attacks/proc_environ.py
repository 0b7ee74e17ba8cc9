# expect: pass
try:
    open("/proc/self/environ")
    print("ESCAPED")
except Exception:
    print("contained")
