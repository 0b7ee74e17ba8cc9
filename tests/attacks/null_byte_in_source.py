# expect: syntax_error
print("contained")
@NUL@
