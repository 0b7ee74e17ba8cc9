# expect: pass
# cases: 3
import warnings
print('contained' if not any(f[0] == 'error' for f in warnings.filters) else 'ESCAPED')
warnings.simplefilter('error')
