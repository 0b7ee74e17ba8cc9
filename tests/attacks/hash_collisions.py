# expect: cpu_time
class Same:
    def __hash__(self):
        return 1
    def __eq__(self, other):
        return False
print(len({Same() for _ in range(10 ** 6)}))
