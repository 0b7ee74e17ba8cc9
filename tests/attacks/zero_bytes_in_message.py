# expect: runtime_error
raise ValueError("a\0b\0c")
