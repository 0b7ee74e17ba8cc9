# expect: pass
try:
    open("codeseq-attack-append", "a")
    print("ESCAPED")
except Exception:
    print("contained")
