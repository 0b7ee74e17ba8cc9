# expect: pass
try:
    import fcntl
    fcntl.flock(1, fcntl.LOCK_EX)
    print("ESCAPED")
except Exception:
    print("contained")
