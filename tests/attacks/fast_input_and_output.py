# expect: pass
# cases: 3
import os, sys
from io import BytesIO, IOBase
class Fast(IOBase):
    def __init__(self, stream):
        self.number = stream.fileno()
        self.writes = "r" not in stream.mode
        self.held = BytesIO()
        if self.writes:
            self.write = lambda text: self.held.write(text.encode())
        else:
            self.held.write(os.read(self.number, max(os.fstat(self.number).st_size, 1)))
            self.held.seek(0)
    def readline(self):
        return self.held.readline().decode()
    def flush(self):
        if self.writes:
            os.write(self.number, self.held.getvalue())
            self.held.seek(0)
            self.held.truncate(0)
sys.stdin, sys.stdout = Fast(sys.stdin), Fast(sys.stdout)
input = lambda: sys.stdin.readline().rstrip()
print("contained" if int(input()) >= 7 else "lost")
