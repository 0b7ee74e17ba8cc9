# expect: pass
try:
    kept = [0] * (10 ** 9)
    print("ESCAPED")
except MemoryError:
    print("contained")
