# expect: pass
# cases: 3
import builtins, sys, decimal
seen = "leak" in sys.argv
sys.argv.append("leak")
print("ESCAPED" if seen else "contained")
