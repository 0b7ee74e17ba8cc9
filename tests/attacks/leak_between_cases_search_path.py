# expect: pass
# cases: 3
import sys
print('contained' if not sys.path else 'ESCAPED')
sys.path.append('/')
