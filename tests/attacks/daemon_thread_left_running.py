# expect: pass
import threading
threading.Thread(target=lambda: [0 for _ in iter(int, 1)], daemon=True).start()
print("contained")
