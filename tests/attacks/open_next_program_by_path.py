# expect: pass
try:
    open("/proc/self/fd/0", "r+")
    print("ESCAPED")
except Exception:
    print("contained")
