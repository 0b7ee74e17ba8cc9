# expect: wall_time
import threading
threading.Event().wait()
