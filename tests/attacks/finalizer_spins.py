# expect: cpu_time
class Evil:
    def __del__(self):
        while True:
            pass
Evil()
print("contained")
