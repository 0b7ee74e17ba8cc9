# expect: pass
import threading, time
started = 0
try:
    for _ in range(100_000):
        threading.Thread(target=time.sleep, args=(1000,), daemon=True).start()
        started += 1
except (RuntimeError, MemoryError):
    pass
print("contained" if started < 10_000 else "ESCAPED")
