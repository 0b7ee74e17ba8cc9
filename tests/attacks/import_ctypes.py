# expect: forbidden
# cases: 1
import ctypes
