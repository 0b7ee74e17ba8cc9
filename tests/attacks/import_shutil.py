# expect: pass
try:
    import shutil
    shutil.rmtree("/tmp/codeseq-attack-victim")
    print("ESCAPED")
except Exception:
    print("contained")
