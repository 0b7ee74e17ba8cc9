# expect: cpu_time
import itertools
print(0 in itertools.repeat(1))
