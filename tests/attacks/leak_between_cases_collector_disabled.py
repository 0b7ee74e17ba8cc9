# expect: pass
# cases: 3
import gc
print('contained' if gc.isenabled() else 'ESCAPED')
gc.disable()
