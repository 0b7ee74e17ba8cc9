# expect: forbidden
import os, sys
os.execve(sys.executable, [sys.executable, "-c", "print(1)"], {})
