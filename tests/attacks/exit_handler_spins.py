# expect: cpu_time
import atexit
@atexit.register
def spin():
    while True:
        pass
print("contained")
