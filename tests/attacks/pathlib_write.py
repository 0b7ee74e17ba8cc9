# expect: pass
try:
    import pathlib
    pathlib.Path("/tmp/codeseq-attack-pathlib").write_text("x")
    print("ESCAPED")
except Exception:
    print("contained")
