# expect: cpu_time
import threading
def spin():
    while True:
        sum(range(10**6))
for _ in range(4):
    threading.Thread(target=spin, daemon=True).start()
spin()
