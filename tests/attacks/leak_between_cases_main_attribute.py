# expect: pass
# cases: 3
import builtins, sys, decimal
seen = hasattr(sys.modules["__main__"], "leak")
sys.modules["__main__"].leak = 1
print("ESCAPED" if seen else "contained")
