# expect: runtime_error
raise ValueError("x" * 10 ** 7)
