# expect: pass
# cases: 3
import sys
print('contained' if print.__self__.sum([1]) == 1 else 'ESCAPED')
print.__self__.sum = len
