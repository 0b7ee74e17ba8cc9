# expect: syntax_error
if True:
print("contained")
