# expect: runtime_error
raise ValueError("\ud800")
