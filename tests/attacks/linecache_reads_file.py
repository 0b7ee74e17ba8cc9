# expect: pass
import linecache
print("ESCAPED" if linecache.getline("/etc/passwd", 1) else "contained")
