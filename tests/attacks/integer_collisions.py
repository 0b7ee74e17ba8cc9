# expect: cpu_time
print(len({i * (2 ** 61 - 1) for i in range(10 ** 5)}))
