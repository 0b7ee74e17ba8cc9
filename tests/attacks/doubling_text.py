# expect: memory|cpu_time
text = "x"
while True:
    text += text
