# expect: cpu_time
print(max(range(10 ** 12)))
