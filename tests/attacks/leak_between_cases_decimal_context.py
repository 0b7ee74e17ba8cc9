# expect: pass
# cases: 3
import builtins, sys, decimal
seen = decimal.getcontext().prec == 5
decimal.getcontext().prec = 5
print("ESCAPED" if seen else "contained")
