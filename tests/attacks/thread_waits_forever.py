# expect: wall_time
import threading
threading.Thread(target=threading.Event().wait).start()
print("contained")
