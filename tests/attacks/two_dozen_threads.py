# expect: pass
# cases: 3
import threading
gate = threading.Barrier(25)
threads = [threading.Thread(target=gate.wait) for _ in range(24)]
for thread in threads:
    thread.start()
gate.wait()
for thread in threads:
    thread.join()
print("contained")
