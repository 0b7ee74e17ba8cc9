# expect: output_limit|cpu_time
while True:
    print("x" * 10_000)
