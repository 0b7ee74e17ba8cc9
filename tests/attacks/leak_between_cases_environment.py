# expect: pass
# cases: 3
import os
print('contained' if 'LEAK' not in os.environ else 'ESCAPED')
os.environ['LEAK'] = '1'
