# expect: pass
# cases: 3
import sys
for name in ('math', 'heapq', 'collections.abc'):
    del sys.modules[name]
import math, heapq, collections.abc
print('contained' if math.pi > 3 else 'lost')
