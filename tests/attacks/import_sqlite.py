# expect: pass
try:
    import sqlite3
    sqlite3.connect("/tmp/codeseq-attack.db")
    print("ESCAPED")
except Exception:
    print("contained")
