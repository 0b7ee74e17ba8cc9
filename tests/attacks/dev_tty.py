# expect: pass
try:
    open("/dev/tty")
    print("ESCAPED")
except Exception:
    print("contained")
