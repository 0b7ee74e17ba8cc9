# expect: cpu_time
import math
print(len(str(math.factorial(3_000_000))))
