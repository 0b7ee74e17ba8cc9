# expect: pass
try:
    open("/proc/1/root/etc/passwd")
    print("ESCAPED")
except Exception:
    print("contained")
