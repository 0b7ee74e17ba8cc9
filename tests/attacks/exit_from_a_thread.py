# expect: pass
import threading, sys
thread = threading.Thread(target=sys.exit)
thread.start()
thread.join()
print("contained")
