# expect: pass
import threading, time
threading.stack_size(1 << 15)
try:
    threading.Thread(target=print, args=("ESCAPED",)).start()
except RuntimeError:
    pass
threading.stack_size(1 << 20)
started = 0
try:
    for _ in range(100_000):
        threading.Thread(target=time.sleep, args=(1000,), daemon=True).start()
        started += 1
except (RuntimeError, MemoryError):
    pass
print("contained" if 16 <= started < 1024 else "ESCAPED %d" % started)
