# expect: pass
# cases: 3
import threading
print('contained' if threading.stack_size() == 0 else 'ESCAPED')
threading.stack_size(1 << 20)
