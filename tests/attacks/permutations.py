# expect: cpu_time|memory
import itertools
print(len(list(itertools.permutations(range(12)))))
