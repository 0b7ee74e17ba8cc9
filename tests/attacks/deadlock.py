# expect: wall_time
import threading
lock = threading.Lock()
lock.acquire()
lock.acquire()
