# expect: cpu_time
sum(range(10 ** 13))
