# expect: pass
# cases: 3
import threading, time
print('contained' if threading.active_count() == 1 else 'ESCAPED')
threading.Thread(target=time.sleep, args=(9,), daemon=True).start()
