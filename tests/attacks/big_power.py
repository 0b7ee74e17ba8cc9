# expect: cpu_time|memory
print(len(str(10 ** 10 ** 8)))
