# expect: cpu_time
class Evil(Exception):
    def __str__(self):
        while True:
            pass
raise Evil
