# expect: pass
try:
    open("/proc/self/mem", "r+b")
    print("ESCAPED")
except Exception:
    print("contained")
