# expect: pass
# cases: 3
import os
print('contained' if os.dup(0) < 9 else 'ESCAPED')
[os.dup(0) for _ in range(8)]
