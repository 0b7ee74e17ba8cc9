# expect: pass
try:
    eval("(" * 100_000 + ")" * 100_000)
    print("ESCAPED")
except (SyntaxError, MemoryError, RecursionError):
    print("contained")
