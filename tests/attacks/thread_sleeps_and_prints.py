# expect: pass
# cases: 3
import threading, time
threading.Thread(target=lambda: (time.sleep(0.02), print('contained'))).start()
