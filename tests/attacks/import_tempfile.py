# expect: pass
try:
    import tempfile
    tempfile.mkdtemp()
    print("ESCAPED")
except Exception:
    print("contained")
