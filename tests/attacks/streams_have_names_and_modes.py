# expect: pass
# cases: 3
import sys
found = [(s.name, s.mode, s.buffer.raw.mode, s.fileno()) for s in (sys.stdin, sys.stdout, sys.stderr)]
expected = [("<stdin>", "r", "rb", 0), ("<stdout>", "w", "wb", 1), ("<stderr>", "w", "wb", 2)]
print("contained" if found == expected else found)
