# expect: pass
# cases: 3
import builtins, sys, decimal
seen = type(sys.stdin).__name__ == "StringIO"
sys.stdin = __import__("io").StringIO("x")
print("ESCAPED" if seen else "contained")
