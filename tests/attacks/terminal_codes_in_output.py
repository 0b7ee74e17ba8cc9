# expect: wrong_answer
print("\x1b[2J\x1b]0;title\x07contained")
