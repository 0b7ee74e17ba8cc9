# expect: pass
import sys
for _ in range(1000):
    sys.stderr.write("x" * 10_000)
print("contained")
