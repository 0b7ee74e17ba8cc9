# expect: memory|cpu_time|runtime_error
import decimal
decimal.getcontext().prec = decimal.MAX_PREC
print(decimal.Decimal(2).sqrt())
