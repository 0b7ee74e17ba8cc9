# expect: pass
# cases: 3
import decimal
print('contained' if decimal.DefaultContext.prec == 28 else 'ESCAPED')
decimal.DefaultContext.prec = 5
