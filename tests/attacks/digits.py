# expect: cpu_time|memory
print(len(str(1 << 10 ** 8)))
