# expect: pass
try:
    open("/tmp/codeseq-attack-write", "w")
    print("ESCAPED")
except Exception:
    print("contained")
