# expect: runtime_error
input()
input()
