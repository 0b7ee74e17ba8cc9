# expect: cpu_time|memory
from functools import cmp_to_key
print(sorted(range(10 ** 7), key=cmp_to_key(lambda a, b: -1))[0])
