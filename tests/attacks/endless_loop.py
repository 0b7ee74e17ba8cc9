# expect: cpu_time
while True:
    pass
