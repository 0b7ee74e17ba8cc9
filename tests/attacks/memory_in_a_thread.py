# expect: wrong_answer
import threading
def grow():
    kept = []
    while True:
        kept.append(bytes(10 ** 6))
thread = threading.Thread(target=grow)
thread.start()
thread.join()
