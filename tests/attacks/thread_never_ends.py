# expect: cpu_time
import threading
def spin():
    while True:
        pass
threading.Thread(target=spin).start()
print("contained")
