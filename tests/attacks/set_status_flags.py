# expect: pass
try:
    import fcntl
    fcntl.fcntl(1, fcntl.F_SETFL, 0o2000)
    print("ESCAPED")
except Exception:
    print("contained")
