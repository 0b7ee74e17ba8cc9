# expect: runtime_error
import sys
class Evil:
    def write(self, text):
        return 1
    def flush(self):
        raise ValueError("flush")
sys.stdout = Evil()
print("contained")
