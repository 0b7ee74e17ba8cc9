# expect: pass
# cases: 3
import os
print('contained' if os.path.basename(os.path.abspath(__file__)) == 'program.py' else 'lost')
