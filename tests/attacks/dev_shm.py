# expect: pass
try:
    open("/dev/shm/codeseq-attack", "w")
    print("ESCAPED")
except Exception:
    print("contained")
