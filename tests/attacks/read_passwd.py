# expect: forbidden
print(open("/etc/passwd").read())
