# expect: pass
try:
    open("/dev/null")
    print("ESCAPED")
except Exception:
    print("contained")
